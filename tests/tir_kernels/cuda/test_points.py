"""Points, batch elements and unions of sets on the emulated device: results at the edges of blocks, and what is refused."""

import re

import numpy as np
import pytest

from tests.cuda_emulator import same_bits
from tests.tir_kernels.cuda.on_device import run
from tests.tolerance import assert_close
from tir_kernels.spec import batch_offsets, interpolate, quantize, trilinear, union
from tir_kernels.spec.batch_offsets import BatchOffsets
from tir_kernels.spec.coordinate_index import PLAN_SIZE, BuildIndex, PlanIndex
from tir_kernels.spec.interpolate import Interpolate
from tir_kernels.spec.quantize import Quantize
from tir_kernels.spec.trilinear import CORNERS, Trilinear
from tir_kernels.spec.union import SetRows

SIZE, ORIGIN = np.array([0.1, 0.25, 0.5], "float32"), np.array([-1, 0.3, 7], "float32")


def refused(words: str, *args) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        run(*args)


def cloud(rows: int, scale: float = 4) -> np.ndarray:
    return (scale * np.random.default_rng(rows).standard_normal((rows, 3))).astype("float32")


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 3, 4)])
def test_voxels_of_points(stride):
    for rows in (0, 1, 257):
        points, batch = cloud(rows), np.arange(rows, dtype="int32") % 3
        (out,) = run(Quantize(stride), [points, SIZE, ORIGIN], [((rows, 4), "int32")])
        np.testing.assert_array_equal(out, quantize.naive(points, SIZE, None, ORIGIN, stride))
        (out,) = run(Quantize(stride, True), [points, SIZE, batch, ORIGIN], [((rows, 4), "int32")])
        np.testing.assert_array_equal(out, quantize.naive(points, SIZE, batch, ORIGIN, stride))


@pytest.mark.parametrize("value", [np.nan, np.inf, 32768.0, -32769.0])
def test_points_without_a_voxel(value):
    points = cloud(300)
    points[[290, 41], [0, 2]] = value
    points[250] = value
    kind = "a finite number" if not np.isfinite(value) else "voxels -32768 to 32767"
    where = "" if not np.isfinite(value) else f", which is {value:.9g} voxels from the origin"
    words = f"points: row 41 has z {value:.9g}{where}, expected {kind}"
    one, zero = np.ones(3, "float32"), np.zeros(3, "float32")
    refused(words, Quantize(), [points, one, zero], [((300, 4), "int32")])


def test_grids_that_are_none():
    points, out = cloud(3), [((3, 4), "int32")]
    for argument, value in (("voxel_size", 0.0), ("voxel_size", np.nan), ("voxel_size", -0.5), ("origin", np.inf)):
        size, origin = SIZE.copy(), ORIGIN.copy()
        (size if argument == "voxel_size" else origin)[1:] = value
        kind = "a finite number above 0" if argument == "voxel_size" else "a finite number"
        refused(f"{argument}: expected {kind} along y, given {value:.9g}", Quantize(), [points, size, origin], out)
    batch = np.array([0, 4096, -1], "int32")
    words = "batch_index: row 1 is 4096, expected 0 to 4095"
    refused(words, Quantize((1, 1, 1), True), [points, SIZE, batch, ORIGIN], out)


def indexed(coords: np.ndarray, method: str) -> list[np.ndarray]:
    plan, size = run(PlanIndex(method), [coords], [((PLAN_SIZE,), "int64"), ((2,), "int64")])
    return [plan, *run(BuildIndex(), [coords, plan], [((int(size[0]),), "int32"), ((int(size[1]),), "int64")])]


@pytest.mark.parametrize("method", ["grid", "hash"])
@pytest.mark.parametrize("normalize", [False, True])
def test_weights(method, normalize):
    rng = np.random.default_rng(0)
    coords = np.unique(rng.integers(-6, 6, (700, 4)) * [0, 1, 1, 1] + [1, 0, 0, 0], axis=0).astype("int32")
    coords = rng.permutation(coords)
    points, stride = cloud(260, 3), (2, 1, 1)
    batch = np.full(260, 1, "int32")
    batch[::9] = 0  # no voxel there
    one, zero = np.ones(3, "float32"), np.zeros(3, "float32")
    given = [points, one, batch, zero, *indexed(coords, method)]
    index, weight = run(Trilinear(stride, normalize, True), given, [((260, CORNERS), "int32"), ((260, CORNERS), "float32")])
    expected_index, expected = trilinear.naive(coords, points, one, batch, zero, stride, normalize)
    np.testing.assert_array_equal(index, expected_index)
    assert_close(weight, expected, depth=CORNERS, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weighted_sums(dtype):
    rng = np.random.default_rng(0)
    for rows, channels in ((0, 3), (1, 1), (100, 24), (100, 33)):
        x = rng.standard_normal((50, channels)).astype(dtype)
        index, weight = rng.integers(-1, 50, (rows, 8)).astype("int32"), rng.random((rows, 8), "float32")
        (out,) = run(Interpolate(channels, 8, dtype), [x, index, weight], [((rows, channels), dtype)])
        depth = 8 if dtype == "float32" else 1
        assert_close(out, interpolate.naive(x.astype("float32"), index, weight), depth, dtype=dtype)
    index[[40, 90], [5, 1]] = 50, -2
    words = "index: entry 5 of row 40 is 50, expected a row from 0 to 49, or -1"
    refused(words, Interpolate(channels, 8, dtype), [x, index, weight], [((rows, channels), dtype)])


def test_batch_elements():
    for rows, batch in ((0, 1), (0, 4), (1, 1), (600, 9), (600, 300)):
        column = np.sort(np.random.default_rng(rows).integers(0, max(batch - 2, 1), rows))
        coords = np.stack([column, *np.zeros((3, rows), int)], 1).astype("int32")
        (out,) = run(BatchOffsets(), [coords], [((batch + 1,), "int32")])
        np.testing.assert_array_equal(out, batch_offsets.naive(coords, batch))


def test_batch_elements_out_of_order():
    coords = np.zeros((300, 4), "int32")
    coords[100:, 0], coords[200:, 0], coords[250, 0] = 2, 3, 5
    order = "expected the rows of each batch element together, in ascending order"
    refused(f"coords: row 251 has batch index 3 after 5, {order}", BatchOffsets(), [coords], [((9,), "int32")])
    refused("coords: row 250 has batch index 5, expected 0 to 4", BatchOffsets(), [coords], [((6,), "int32")])
    coords[0, 0] = -1
    refused("coords: row 0 has batch index -1, expected 0 to 7", BatchOffsets(), [coords], [((9,), "int32")])


def sets_of(sizes, extent: int = 9) -> list[np.ndarray]:
    rng = np.random.default_rng(len(sizes))
    cells = [rng.choice(extent**3, size, replace=False) for size in sizes]
    return [np.stack([np.zeros_like(c), *np.unravel_index(c, (extent,) * 3)], 1).astype("int32") for c in cells]


def test_unions():
    for sizes in ((0,), (5, 0, 7), (300, 1, 200)):
        sets = sets_of(sizes)
        _, inverse, rows = union.naive(sets)
        offsets = np.cumsum([0, *sizes]).astype("int32")
        outputs = [((len(inverse),), "int32"), (rows.shape, "int32")]
        made = run(SetRows(), [inverse, offsets], outputs)
        np.testing.assert_array_equal(made[0], inverse)
        np.testing.assert_array_equal(made[1], rows)
    same_bits(lambda: run(SetRows(), [inverse, offsets], outputs))


def test_unions_of_what_is_no_set():
    inverse = np.array([3, 1, 0, 3, 2, 1, 4, 3, 1, 2, 1], "int32")
    outputs = [((11,), "int32"), ((3, 5), "int32")]
    words = "coords: row 5 of set 1 repeats the coordinates of row 1 of it, expected every row of a set to be different"
    refused(words, SetRows(), [inverse, np.array([0, 2, 8, 11], "int32")], outputs)
    refused(
        "offsets: entry 2 is 2 after 4, expected ascending offsets",
        *(SetRows(), [inverse, np.array([0, 4, 2, 11], "int32")], outputs),
    )
    refused(
        "offsets: from 0 to 12, expected offsets from 0 to the 11 rows",
        *(SetRows(), [inverse, np.array([0, 4, 2, 12], "int32")], outputs),
    )
