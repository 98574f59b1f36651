"""Results of the drop-in against frozen and against running ones of spconv's."""

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sparse_ops.torch.spconv as ours  # noqa: E402
from tests import DATA  # noqa: E402
from tests.golden.case_torture import CASE  # noqa: E402
from tests.golden.runner import check_tensors, read  # noqa: E402
from tests.golden.together import run_together  # noqa: E402
from tests.sparse_ops.torch.clouds import by_voxel, features, one_thread, voxels  # noqa: E402
from tests.tolerance import assert_close  # noqa: E402

TORTURE = DATA / "golden" / "torture.safetensors"


def torture(tensors, config) -> dict:
    """What the layers of the file make of its inputs; four axes are refused."""
    results = {}
    for name in {key.split(".")[0] for key in tensors if key.startswith("in")}:
        arguments = [torch.from_numpy(tensors[f"{name}.{part}"]) for part in ("feats", "coords")]
        shape = tensors[f"{name}.spatial_shape"]
        try:
            results[name] = ours.SparseConvTensor(*arguments, shape, int(tensors[f"{name}.coords"][:, 0].max()) + 1)
        except ValueError as error:
            assert len(shape) == 4
            results[name] = error

    def run(layer):
        x = results[layer["input"]]
        channels = () if layer["kind"] == "maxpool" else (layer["c_in"], layer["c_out"])
        if isinstance(x, ValueError):
            return x
        module = getattr(ours, layer["op"])(*channels, **layer["ctor"]).eval()
        prefix = f"state.{layer['name']}."
        state = {key.removeprefix(prefix): torch.from_numpy(value) for key, value in tensors.items() if key.startswith(prefix)}
        module.load_state_dict(state)
        with torch.no_grad():
            return module(x)

    jobs = {layer["name"]: (lambda layer=layer: run(layer)) for layer in config["layers"]}
    summed = config["extra"]["sparse_add"]
    jobs["sparse_add"] = lambda: ours.functional.sparse_add(*(results[name] for name in summed))
    for name, result in run_together(jobs):
        results[name] = result
    return results


def test_golden_layers_of_spconv():
    tensors, config = read(TORTURE)
    results, actual = torture(tensors, config), {}
    for key in tensors:
        part, _, rest = key.partition(".")
        if part in ("mid", "out"):
            name, field = rest.rsplit(".", 1) if part == "mid" else (config["out"].rsplit(".", 1)[-1], rest)
            x = results[name]
            if isinstance(x, ValueError):
                actual[key] = x
            elif field == "spatial_shape":
                actual[key] = np.array(x.spatial_shape, "int32")
            else:
                actual[key] = by_voxel(x)[field == "feats"]
    report = check_tensors(TORTURE, CASE, actual, tensors, config)
    assert report.ok, report.table()
    refused = [row.name for row in report.rows if row.note]
    assert len(refused) * 10 < len(report.rows)


def geometries(count: int):
    """(kind, axes, kernel, stride, padding, dilation, shape), with room for the kernel."""
    rng = random.Random(3)
    while count:
        axes = rng.choice((1, 2, 3))
        shape = [rng.randint(4, 9) for _ in range(axes)]
        kernel, stride, padding, dilation = (
            [rng.choice(of) for _ in shape] for of in ((1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 2))
        )
        kind = rng.choice(("SubMConv", "SparseConv", "SparseConvTranspose", "SparseMaxPool", "conv and back", "pool and back"))
        if kind == "SubMConv":
            kernel = [k | 1 for k in kernel]
        grid = ours.ops.get_conv_output_size(shape, kernel, stride, padding, dilation)
        if min(grid) < 1 or max(kernel) == 1:
            continue
        count -= 1
        yield kind, axes, kernel, stride, padding, dilation, shape


@pytest.mark.parametrize(("seed", "geometry"), list(enumerate(geometries(14))), ids=lambda value: str(value).replace(" ", ""))
def test_random_geometries(seed, geometry):
    real = pytest.importorskip("spconv.pytorch")
    kind, axes, kernel, stride, padding, dilation, shape = geometry
    rows = min(50, int(np.prod(shape)))
    indices, values = voxels(rows, shape, seed=seed), features(rows)

    def run(spconv):
        torch.manual_seed(1)
        common = {"indice_key": "k"}
        if kind in ("SparseMaxPool", "pool and back"):
            layers = [getattr(spconv, f"SparseMaxPool{axes}d")(kernel, stride, padding, dilation, **common)]
        else:
            name = "SparseConv" if kind == "conv and back" else kind
            make = getattr(spconv, f"{name}{axes}d")
            layers = [make(4, 4, kernel, stride, padding, dilation, bias=False, **common)]
        if kind.endswith("back"):
            layers.append(getattr(spconv, f"SparseInverseConv{axes}d")(4, 4, kernel, bias=False, **common))
        with torch.no_grad():
            return spconv.SparseSequential(*layers)(spconv.SparseConvTensor(values, indices, shape, 1))

    mine = run(ours)
    with one_thread():
        theirs = run(real)
    assert mine.spatial_shape == theirs.spatial_shape and torch.equal(mine.indices, theirs.indices)  # the order of rows too
    assert_close(mine.features.numpy(), theirs.features.numpy(), 2 * 4 * int(np.prod(kernel)))
    data, expected = mine.find_indice_pair("k"), theirs.find_indice_pair("k")
    for name in ("spatial_shape", "out_spatial_shape", "is_subm", "ksize", "stride", "dilation", "padding"):
        assert getattr(data, name) == getattr(expected, name), name
    assert torch.equal(data.indices, expected.indices) and torch.equal(data.out_indices, expected.out_indices)
    assert torch.equal(data.indice_pair_num, expected.indice_pair_num)
    assert data.indice_pairs.shape == expected.indice_pairs.shape
    for tap in range(int(np.prod(kernel))):
        pairs = [sorted(map(tuple, x.indice_pairs[:, tap].T.tolist())) for x in (data, expected)]
        assert pairs[0] == pairs[1]


def test_sums_of_other_voxels():
    real = pytest.importorskip("spconv.pytorch")
    parts = [(features(rows), voxels(rows, batch=2, seed=rows), [9, 8, 7], 2) for rows in (20, 30, 40)]
    mine = ours.functional.sparse_add(*(ours.SparseConvTensor(*part) for part in parts))
    theirs = real.functional.sparse_add(*(real.SparseConvTensor(*part) for part in parts))
    assert torch.equal(mine.indices, theirs.indices)
    assert_close(mine.features.numpy(), theirs.features.detach().numpy(), 3)


def test_from_dense_and_dense():
    real = pytest.importorskip("spconv.pytorch")
    dense = torch.zeros(2, 5, 4, 3)
    dense[features(40)[:, 0].reshape(2, 5, 4) > 0] = 1.5
    mine, theirs = (spconv.SparseConvTensor.from_dense(dense) for spconv in (ours, real))
    assert torch.equal(mine.indices, theirs.indices) and torch.equal(mine.features, theirs.features)
    assert mine.spatial_shape == theirs.spatial_shape and mine.batch_size == theirs.batch_size
    for first in (True, False):
        assert torch.equal(mine.dense(first), theirs.dense(first))
