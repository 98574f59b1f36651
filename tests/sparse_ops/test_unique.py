"""Unique and downsampled coordinates, subdivision, look-up: every method against the oracle, any input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ops.eager import functional as F
from tests.sparse_ops.strategies import coordinates
from tir_kernels.spec import coordinate_index, subdivide, unique

quick = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize("factor", [(1, 1, 1), (2, 2, 2), (3, 1, 4)])
@pytest.mark.parametrize("method", ["grid", "sort"])
@quick
@given(coords=coordinates(), repeats=st.integers(1, 3), seed=st.integers(0, 9))
def test_downsample_is_the_sorted_unique(factor, method, coords, repeats, seed):
    coords = np.random.default_rng(seed).permutation(np.repeat(coords, repeats, axis=0))
    out, inverse = F.downsample(coords, factor, method)
    expected, expected_inverse = unique.naive(coords, factor)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(inverse, expected_inverse)


def test_sort_handles_the_widest_box():
    """Cell numbers near 2^60 take every pass of the radix sort."""
    rng = np.random.default_rng(1)
    coords = np.concatenate([rng.integers(0, 4096, (3000, 1)), rng.integers(-32768, 32768, (3000, 3))], 1).astype("int32")
    coords[:2] = [[0, -32768, -32768, -32768], [4095, 32767, 32767, 32767]]
    out, inverse = F.unique(np.repeat(coords, 2, axis=0))
    expected, expected_inverse = unique.naive(np.repeat(coords, 2, axis=0))
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(inverse, expected_inverse)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 3, 2)])
@quick
@given(coords=coordinates())
def test_subdivide(factor, coords):
    children = F.subdivide(coords, factor)
    np.testing.assert_array_equal(children, subdivide.naive(coords, factor))
    back, inverse = F.downsample(children, factor)
    np.testing.assert_array_equal(back[inverse], np.repeat(coords, np.prod(factor), axis=0))


@pytest.mark.parametrize("method", ["grid", "hash"])
@quick
@given(coords=coordinates(), queries=coordinates(low=-7, high=8))
def test_lookup(method, coords, queries):
    rows = F.lookup(coords, queries, method)
    np.testing.assert_array_equal(rows, coordinate_index.naive(coords, queries))


def test_bad_factor_is_named():
    with pytest.raises(ValueError, match="factor: expected an int or three of at least 1, given 0"):
        F.downsample(np.zeros((1, 4), "int32"), 0)
