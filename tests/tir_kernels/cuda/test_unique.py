"""Unique and downsampled coordinates on the emulated device, by both methods."""

import numpy as np
import pytest

from tests.cuda_emulator import same_bits
from tests.tir_kernels.cuda.on_device import run
from tir_kernels.spec.coordinate_index import PLAN_SIZE
from tir_kernels.spec.unique import FillUnique, PlanUnique, RankUnique, naive


def unique(coords, factor=(1, 1, 1), method="auto", read=True):
    """(coordinates, inverse)."""
    plan, size = run(PlanUnique(factor, method), [coords], [((PLAN_SIZE,), "int64"), ((2,), "int64")], read)
    scratch = [((size[0],), "int32"), ((size[1],), "int64")]
    *_, inverse, count = run(RankUnique(factor), [coords, plan], [*scratch, ((len(coords),), "int32"), ((1,), "int64")])
    (out,) = run(FillUnique(factor), [coords, inverse], [((count[0], 4), "int32")])
    return out, inverse


def repeated(rows, reach, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.integers(0, 3, (rows, 1)), rng.integers(-reach, reach, (rows, 3))], 1).astype("int32")


@pytest.mark.parametrize("factor", [(1, 1, 1), (2, 2, 2), (3, 1, 4)], ids=str)
@pytest.mark.parametrize("method", ["grid", "sort"])
def test_downsample_is_the_sorted_unique(factor, method):
    for rows in (0, 1, 31, 257, 600):
        coords = repeated(rows, 5)
        out, inverse = unique(coords, factor, method)
        expected, expected_inverse = naive(coords, factor)
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(inverse, expected_inverse)


def test_the_widest_box_and_the_same_bits_whatever_runs_first():
    rng = np.random.default_rng(1)
    coords = np.concatenate([rng.integers(0, 4096, (700, 1)), rng.integers(-32768, 32768, (700, 3))], 1).astype("int32")
    coords = rng.permutation(np.repeat(coords, 3, axis=0))
    for expected, made in zip(naive(coords), same_bits(lambda: unique(coords), (1, 2)), strict=True):
        np.testing.assert_array_equal(made, expected)
    near = repeated(4000, 9)
    for expected, made in zip(naive(near), same_bits(lambda: unique(near), (1, 2)), strict=True):
        np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("method", ["auto", "grid", "sort"])
def test_what_is_refused_and_stays_within_memory(method):
    coords = repeated(300, 9)
    coords[200, 3], coords[10, 2] = -32769, 2**31 - 1
    with pytest.raises(ValueError, match=r"^coords: row 10 has y 2147483647, expected -32768 to 32767$"):
        unique(coords, method=method)
    out, inverse = unique(coords, method=method, read=False)
    assert inverse.min() >= 0 and inverse.max() < len(out)
    wide = np.array([[0, -32768, 0, 0], [1, 32767, 99, 99]], "int32")
    if method == "grid":
        with pytest.raises(ValueError, match="given 'grid' for a box of 2 x 65536 x 100 x 100 cells"):
            unique(wide, method=method)
    else:
        np.testing.assert_array_equal(unique(wide, method=method)[0], wide)
