"""Dense grids on the emulated device: any extents, both places of the channels, and what is refused."""

import re

import numpy as np
import pytest

from tests.cuda_emulator import same_bits
from tests.tir_kernels.cuda.on_device import run
from tir_kernels.spec import dense
from tir_kernels.spec.dense import FromDense, ToDense, grid_shape

BATCH, SHAPE, CHANNELS = 2, (9, 7, 5), 3


def voxels(rows: int) -> np.ndarray:
    cells = np.random.default_rng(rows).permutation(BATCH * int(np.prod(SHAPE)))[:rows]
    return np.stack(np.unravel_index(cells, (BATCH, *SHAPE)), 1).astype("int32")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_there_and_back(dtype, channels_last):
    out = (grid_shape(BATCH, CHANNELS, SHAPE, channels_last), dtype)
    for rows in (0, 1, 300):
        coords = voxels(rows)
        x = np.random.default_rng(rows).standard_normal((rows, CHANNELS)).astype(dtype)
        (grid,) = run(ToDense(CHANNELS, dtype, channels_last), [x, coords], [out])
        np.testing.assert_array_equal(grid, dense.naive_to_dense(x, coords, BATCH, SHAPE, channels_last))
        (back,) = run(FromDense(dtype, channels_last), [grid, coords], [((rows, CHANNELS), dtype)])
        np.testing.assert_array_equal(back, x)
    if dtype == "float32":
        same_bits(lambda: run(ToDense(CHANNELS, dtype, channels_last), [x, coords], [out]))


def test_repeated_rows():
    coords = voxels(300)
    coords[[77, 120, 290]] = coords[[13, 5, 13]]
    x = np.ones((300, CHANNELS), "float32")
    words = "coords: row 77 repeats the coordinates of row 13, expected every row to be different"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        run(ToDense(CHANNELS), [x, coords], [((BATCH, CHANNELS, *SHAPE), "float32")])


def test_rows_outside():
    coords = voxels(300)
    coords[[200, 100, 20], [1, 1, 3]] = 9, -1, 5
    x = np.ones((300, CHANNELS), "float32")
    grid = np.ones((BATCH, CHANNELS, *SHAPE), "float32")
    words = "coords: row 100 has x -1, expected 0 to 8"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        run(ToDense(CHANNELS), [x, coords], [(grid.shape, "float32")])
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        run(FromDense(), [grid, coords], [(x.shape, "float32")])
