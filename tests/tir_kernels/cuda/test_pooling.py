"""Pooling over an index and through kernel maps on the emulated device."""

import re

import numpy as np
import pytest

from tests.cuda_emulator import same_bits, strict
from tests.tir_kernels.cuda.maps import neighbour_table
from tests.tir_kernels.cuda.on_device import run
from tests.tolerance import assert_close
from tir_kernels.cuda.segment_pool import LANES, LONG
from tir_kernels.spec import pool, segment_pool
from tir_kernels.spec.pool import Pool, Reduction
from tir_kernels.spec.segment_pool import SegmentPool

REDUCTIONS = [Reduction("sum"), Reduction("mean", 1), Reduction("max"), Reduction("max", max_from_zero=True)]


def features(rows: int, channels: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, channels)).astype(dtype)


@pytest.mark.parametrize("dtype, channels", [("float32", 35), ("float16", 40)])
@pytest.mark.parametrize("reduction", [*REDUCTIONS, Reduction("first")], ids=str)
def test_segments(reduction, dtype, channels):
    """Few rows to a segment and many, with empty segments and rows that go nowhere, around the warps of a block."""
    for rows, segments in ((0, 0), (0, 3), (1, 1), (200, 300), (3 * LONG, 3), (LANES * 4 + 1, 1)):
        x = features(rows, channels, dtype)
        index = np.random.default_rng(rows).integers(-1, max(segments - 1, 1), rows).astype("int32")
        (out,) = run(SegmentPool(channels, reduction, dtype), [x, index], [((segments, channels), dtype)])
        assert_close(
            out, segment_pool.naive(x, index, segments, reduction), depth=max(rows, 1) if dtype == "float32" else 1, dtype=dtype
        )
    same_bits(lambda: run(SegmentPool(channels, reduction, dtype), [x, index], [((segments, channels), dtype)]))


def test_segments_of_nan():
    x = features(2 * LONG, 3)
    x[5, 0] = x[100, 1] = np.nan
    x[7, 2] = -np.inf
    for segments in (1, 40):  # together and alone
        index = (np.arange(len(x)) % segments).astype("int32")
        for reduction in REDUCTIONS:
            (out,) = run(SegmentPool(3, reduction), [x, index], [((segments, 3), "float32")])
            expected = segment_pool.naive(x, index, segments, reduction)
            np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
            assert_close(out, expected, depth=len(x), dtype="float32")


@pytest.mark.parametrize("value", [-2, 4])
def test_index_that_is_no_row(value):
    index = np.array([0, 3, value, 1, value], "int32")
    words = f"index: entry 2 is {value}, expected a row from 0 to 3, or -1"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        run(SegmentPool(2, Reduction("sum")), [features(5, 2), index], [((4, 2), "float32")])


@pytest.mark.parametrize("groups, dtype, channels", [(1, "float32", 5), (2, "float16", 16), (3, "bfloat16", 8)])
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_maps(reduction, groups, dtype, channels):
    taps = 8
    for rows_in, rows in ((0, 0), (4, 1), (90, 127), (90, 129)):
        rng = np.random.default_rng(rows)
        x = features(rows_in, channels, dtype)
        table = rng.integers(-1, max(rows_in, 1), (taps, rows)).astype("int32")
        table[rng.random(table.shape) < 0.7] = -1
        arrays = neighbour_table(table, rows_in, groups)
        (out,) = run(Pool(channels, reduction, dtype), [x, *arrays], [((rows, channels), dtype)])
        assert_close(out, pool.naive(x, table, reduction), depth=taps if dtype == "float32" else 1, dtype=dtype)


def test_map_of_other_rows():
    arrays = neighbour_table(np.zeros((3, 4), "int32"), 6, 1)
    with pytest.raises(ValueError, match=r"^kernel_map: expected a map from 5 input rows to 4 output rows"):
        run(Pool(2, Reduction("max")), [features(5, 2), *arrays], [((4, 2), "float32")])
    with strict(copies=True):  # a result of other rows is written all the same
        (out,) = run(Pool(2, Reduction("sum")), [features(5, 2), *arrays], [((6, 2), "float32")], read=False)
    assert out.shape == (6, 2) and not out[4:].any()
