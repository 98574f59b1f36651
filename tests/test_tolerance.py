"""The bound itself: it holds for honest sums and breaks for wrong ones."""

import ml_dtypes
import numpy as np
import pytest

from tests.tolerance import assert_close, compare, tolerance


def test_formula():
    assert tolerance(np.float32, depth=9, scale=2, c=1) == pytest.approx(3 * 2 * 2.0**-23)
    assert tolerance(np.float64) == pytest.approx(4 * 2.0**-52)
    assert tolerance(ml_dtypes.bfloat16) == pytest.approx(4 * 2.0**-7)
    assert tolerance(np.int32, depth=100) == 0


@pytest.mark.parametrize("depth", [1, 27, 27 * 64, 27 * 512])
def test_a_float32_product_is_close_to_the_float64_one(depth):
    rng = np.random.default_rng(depth)
    a, b = rng.standard_normal((64, depth), dtype=np.float32), rng.standard_normal((depth, 64), dtype=np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert_close(a @ b, exact, depth, dtype=np.float32)
    sequential = np.zeros_like(a @ b)
    for k in range(depth):
        sequential += a[:, k : k + 1] * b[k]
    assert_close(sequential, exact, depth, dtype=np.float32)


@pytest.mark.parametrize("depth", [27, 27 * 64])
def test_one_term_missing_is_not_close(depth):
    rng = np.random.default_rng(depth)
    a, b = rng.standard_normal((64, depth)), rng.standard_normal((depth, 64))
    with pytest.raises(AssertionError, match=r"out \[64, 64\]: max error above"):
        assert_close(a[:, 1:] @ b[1:], a @ b, depth, dtype=np.float32, name="out")


def test_special_values_must_stand_at_the_same_places():
    expected = np.float32([1, np.nan, np.inf, -np.inf])
    assert compare(expected, expected).ok
    for wrong in ([1, 2, np.inf, -np.inf], [1, np.nan, -np.inf, -np.inf], [np.nan, np.nan, np.inf, -np.inf]):
        assert "NaN or infinite" in compare(np.float32(wrong), expected).problem


def test_integers_and_booleans_are_exact_at_any_width():
    assert compare(np.int32([1, 2]), np.int64([1, 2]), depth=1e9).ok
    assert compare(np.int64([1, 3]), np.int64([1, 2]), depth=1e9).problem == "1 of 2 values differ"
    assert not compare(np.array([True]), np.array([False])).ok
    assert "dtype" in compare(np.float32([1]), np.int64([1])).problem


def test_shapes_zeros_and_empty_arrays():
    assert "shape" in compare(np.zeros((2, 1)), np.zeros(2)).problem
    assert compare(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).ok
    assert compare(np.zeros(3, np.float32), np.zeros(3, np.float32)).l2_error == 0
    assert not compare(np.full(3, 1e-3, np.float32), np.zeros(3, np.float32)).ok
