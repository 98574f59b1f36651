"""Copies and pickles of tensors, maps, layers and networks: they travel as numpy or torch arrays and come back whole."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tvm

import sparse_ops
from sparse_ops import KernelMap, SparseTensor, Weights
from sparse_ops import functional as F
from sparse_ops.eager.tensor import CoordinateSet, Layer

torch = pytest.importorskip("torch")
COORDS = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 3, 2, 1], [1, 0, 0, 0], [1, 1, 1, 1]], "int32")
WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {p}": lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}
KINDS = {
    "numpy": lambda array: array,
    "bfloat16": lambda array: array.astype(ml_dtypes.bfloat16),
    "torch": torch.from_numpy,
    "tvm": tvm.runtime.tensor,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def feats(channels=4):
    return np.random.default_rng(channels).standard_normal((len(COORDS), channels)).astype("float32")


def numbers(array) -> np.ndarray:
    return (array.numpy() if hasattr(array, "numpy") else array).astype("float64")


def network():
    down = sparse_ops.SparseConv3d(4, 6, 3, 2, padding=1, indice_key="down")
    return sparse_ops.SparseSequential(sparse_ops.SubMConv3d(4, 4, 3, indice_key="s"), sparse_ops.ReLU(), down)


@every_way
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_comes_back_whole(way, kind):
    x = SparseTensor(KINDS[kind](feats()), COORDS, (4, 5, 6), 3)
    y = way(x)
    assert type(y.feats) is type(x.feats) and type(y.coords) is type(x.coords) and y.feats.dtype == x.feats.dtype
    np.testing.assert_array_equal(numbers(y.feats), numbers(x.feats))
    np.testing.assert_array_equal(numbers(y.coords), COORDS)
    assert (y.spatial_shape, y.batch_size, repr(y)) == ((4, 5, 6), 3, repr(x))
    if kind != "bfloat16":
        layer = sparse_ops.SubMConv3d(4, 3, 3)
        np.testing.assert_array_equal(numbers(layer(y).feats), numbers(layer(x).feats))


@every_way
@pytest.mark.parametrize("width", [2, 3])
def test_fewer_dimensions_negative_coordinates_and_no_rows(way, width):
    coords = np.ascontiguousarray(COORDS[:, :width]) - np.array([0, *[2] * (width - 1)], "int32")
    coords = np.unique(coords, axis=0)
    for rows in (len(coords), 0):
        x = SparseTensor(feats()[:rows], coords[:rows])
        y = way(x)
        np.testing.assert_array_equal(y.coords, coords[:rows])
        assert y.coordinates.unbounded == bool(rows) and y.coordinates.dimensions == width - 1


@every_way
def test_what_keys_lead_back_to_survives(way):
    """A layer that undoes another finds its map in the copy, and gives the same bits."""
    net, up = network(), sparse_ops.SparseInverseConv3d(6, 3, 3, "down")
    y = net(SparseTensor(feats(), COORDS, (4, 4, 4), 2))
    expected = up(y)
    copied = way(y)
    assert set(copied.indice_dict) == {"s", "down"} and isinstance(copied.indice_dict["down"], Layer)
    back = up(copied)
    np.testing.assert_array_equal(back.feats, expected.feats)
    np.testing.assert_array_equal(back.coords, COORDS)
    assert back.spatial_shape == (4, 4, 4)
    again = sparse_ops.SubMConv3d(3, 3, 3, indice_key="s")
    np.testing.assert_array_equal(again(back).feats, again(expected).feats)


@every_way
def test_tensors_share_their_voxels_in_the_copy(way):
    x = SparseTensor(feats(), COORDS, (4, 4, 4))
    first, second = way([x, x.replace_feature(2 * x.feats)])
    assert first.coordinates is second.coordinates and first.indice_dict is second.indice_dict
    np.testing.assert_array_equal((first + second).feats, x.feats + 2 * x.feats)


@every_way
@pytest.mark.parametrize(
    "make",
    [lambda: F.submanifold_map(COORDS), lambda: F.inverse_map(F.strided_map(COORDS, 3, 2, 1, shape=(4, 4, 4)))],
    ids=["submanifold", "inverse"],
)
def test_a_map(way, make):
    before = make()
    after = way(before)
    assert isinstance(after, KernelMap) and (after.geometry, after.inverted) == (before.geometry, before.inverted)
    assert after.num_pairs == before.num_pairs
    for name in ("coords_in", "coords_out"):
        np.testing.assert_array_equal(getattr(after, name).numpy(), getattr(before, name).numpy())
    x, weight = np.ones((before.coords_in.shape[0], 4), "float32"), np.ones((2, 3, 3, 3, 4), "float32")
    np.testing.assert_array_equal(F.sparse_conv(x, weight, after), F.sparse_conv(x, weight, before))


@every_way
def test_a_coordinate_set(way):
    before = SparseTensor(feats(), COORDS, (4, 4, 4)).coordinates
    after = way(before)
    assert isinstance(after, CoordinateSet) and after.maps == {} and after.same_voxels(before)


@every_way
@pytest.mark.parametrize("kind", ["numpy", "torch", "tvm"])
def test_weights(way, kind):
    before = Weights(KINDS[kind](np.ones((3, 4), "float32")), KINDS[kind](np.ones(3, "float32")))
    expected = F.linear(feats(), before)
    after = way(before)
    assert isinstance(after, Weights) and type(after.weight) is type(before.weight)
    np.testing.assert_array_equal(F.linear(feats(), after), expected)


def layers():
    for ndim in (1, 2, 3):
        for name in ("SubMConv", "SparseConv", "SparseConvTranspose"):
            yield getattr(sparse_ops, f"{name}{ndim}d")(4, 3, 3)
        yield getattr(sparse_ops, f"SparseInverseConv{ndim}d")(4, 3, 3, "key", bias=False)
        for name in ("SparseMaxPool", "SparseAvgPool", "SparseSumPool"):
            yield getattr(sparse_ops, f"{name}{ndim}d")(2)
    yield from (sparse_ops.ToDense(), sparse_ops.SparseGlobalAvgPool(), sparse_ops.GELU("tanh"), sparse_ops.Identity())


@every_way
def test_every_layer(way):
    for before in layers():
        after = way(before)
        assert type(after) is type(before)
        assert vars(after).keys() - {"_kept"} == vars(before).keys() - {"_kept"}
        for name, value in before.state_dict().items():
            np.testing.assert_array_equal(after.state_dict()[name], value)


@every_way
@pytest.mark.parametrize("kind", ["numpy", "torch", "tvm"])
def test_a_network_that_ran(way, kind):
    net, x = network(), SparseTensor(feats(), COORDS, (4, 4, 4), 2)
    net.load_state_dict({name: KINDS[kind](value) for name, value in net.state_dict().items()})
    expected = net(x).feats
    copied = way(net)
    assert [type(value) for value in copied.state_dict().values()] == [type(value) for value in net.state_dict().values()]
    np.testing.assert_array_equal(copied(SparseTensor(feats(), COORDS, (4, 4, 4), 2)).feats, expected)


CHILD = """
import multiprocessing
import sys
import numpy as np
import sparse_ops


def serve(taken, given):
    net, x = taken.get()
    given.put(net(x))


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    taken, given = context.Queue(), context.Queue()
    process = context.Process(target=serve, args=(taken, given))
    process.start()
    coords = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 3, 2, 1]], "int32")
    net = sparse_ops.SparseSequential(sparse_ops.SparseConv3d(2, 3, 3, 2, padding=1, indice_key="down"), sparse_ops.ReLU())
    x = sparse_ops.SparseTensor(np.ones((3, 2), "float32"), coords, (4, 4, 4), 1)
    expected = net(x)
    taken.put((net, x))
    y = given.get(timeout=120)
    process.join()
    up = sparse_ops.SparseInverseConv3d(3, 2, 3, "down")
    assert (y.feats == expected.feats).all() and (y.coords == expected.coords).all() and y.spatial_shape == (2, 2, 2)
    assert (up(y).feats == up(expected).feats).all()
    print("equal")
"""


def test_through_a_queue_to_a_process_and_back(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    environment = os.environ | {"PYTHONPATH": str(Path(sparse_ops.__file__).parents[1])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.stdout == "equal\n", done.stderr


def test_torch_saves_it():
    x, file = SparseTensor(torch.from_numpy(feats()), COORDS, (4, 4, 4)), io.BytesIO()
    torch.save({"x": x, "net": network()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded["x"].feats, torch.Tensor) and torch.equal(loaded["x"].feats, x.feats)
    assert isinstance(loaded["net"](loaded["x"]).feats, torch.Tensor)
