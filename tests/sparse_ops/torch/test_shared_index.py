"""Layers of the drop-in on the same voxels share one index; test_networks.py counts those of whole networks."""

import copy
import gc
import pickle
import weakref

import pytest

torch = pytest.importorskip("torch")

import sparse_ops.torch.spconv as spconv  # noqa: E402
from sparse_ops.torch.ops import CALLS  # noqa: E402
from tests.sparse_ops.indices import indices_built  # noqa: E402
from tests.sparse_ops.torch.clouds import CHANNELS, SHAPE, features, tensor, voxels  # noqa: E402


def small() -> torch.nn.ModuleList:
    torch.manual_seed(0)
    channels = (CHANNELS, CHANNELS)
    layers = spconv.SubMConv3d(*channels, 3), spconv.SparseConv3d(*channels, 3, 2, 1), spconv.SubMConv3d(*channels, (1, 3, 3))
    return torch.nn.ModuleList(layers).eval()


def results(layers, x) -> list[torch.Tensor]:
    near, strided, flat = layers
    down = strided(x)
    return [y.features.detach() for y in (near(x), down, flat(down), flat(strided(x)), flat(x), near(down))]


@pytest.mark.parametrize("grad", [True, False])
def test_layers_share_it_in_training_too(grad):
    layers = small()
    with torch.set_grad_enabled(grad):
        expected = results(layers, tensor(spconv))
        with indices_built() as built:
            found = results(layers, tensor(spconv))
    assert all(map(torch.equal, found, expected))
    assert (len(built.sets), len(set(built.sets)), built.maps) == (2, 2, 5)


def test_voxels_that_were_written_into_get_another():
    near, _, flat = small()
    with torch.no_grad():
        x = tensor(spconv)
        near(x)
        x.indices[:, 1:] = x.indices[:, 1:].flip(0)
        found, expected = flat(x), flat(spconv.SparseConvTensor(x.features, x.indices.clone(), SHAPE, 1))
    assert torch.equal(found.features, expected.features)


def test_in_inference_mode_too():
    layers = small()
    with torch.inference_mode():
        expected = results(layers, tensor(spconv))
        with indices_built() as built:
            assert all(map(torch.equal, results(layers, tensor(spconv)), expected))
        assert len(built.sets) == 2
        x = tensor(spconv)
        layers[0](x)
        x.indices[:, 1:] = x.indices[:, 1:].flip(0)
        again = spconv.SparseConvTensor(x.features, x.indices.clone(), SHAPE, 1)
        assert torch.equal(layers[2](x).features, layers[2](again).features)


def test_copies_build_their_own_and_memory_goes_with_the_tensor():
    layers, x = small(), tensor(spconv)
    with torch.no_grad():
        expected = results(layers, x)
        for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
            assert all(map(torch.equal, results(layers, other), expected))
    kept = weakref.ref(x.sites._index)
    assert kept().arrays("auto")
    del x
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("first", [0, 1])
def test_voxels_twice_are_refused_by_the_first_layer(first):
    twice = torch.cat([voxels(9), voxels(9)[:1]])
    x = spconv.SparseConvTensor(features(10), twice, SHAPE, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"coords: row 9 .*row 0"):
            small()[first](x)


def test_no_voxels():
    layers, x = small(), spconv.SparseConvTensor(features(0), voxels(0), SHAPE, 1)
    assert [y.shape for y in results(layers, x)] == [(0, CHANNELS)] * 6


def test_what_torch_looks_at_builds_its_own():
    """Under a mode of torch's the op itself is called, which knows of no index."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sees(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            seen.append(str(op))
            return op(*args, **(kwargs or {}))

    seen: list[str] = []
    x = tensor(spconv)
    with Sees():
        first = CALLS["submanifold_map"](x.indices, (3, 3, 3), (1, 1, 1), index=x.sites._index)
    assert "sparse_ops.submanifold_map.default" in seen and not x.sites._index.arrays("auto")
    second = CALLS["submanifold_map"](x.indices, (3, 3, 3), (1, 1, 1), index=x.sites._index)
    assert x.sites._index.arrays("auto") and torch.equal(first[2], second[2])
