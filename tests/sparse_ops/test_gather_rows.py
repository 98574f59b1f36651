"""`gather_rows`: integers, rows that come from nowhere, wrong indices."""

import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops import op
from tests.sparse_ops.walk import evaluate

SHAPES = [("n", 3), ("m",)]


def test_integers():
    x = np.arange(12, dtype="int32").reshape(4, 3)
    out = evaluate(op.gather_rows, x, np.array([3, -1, 0], "int32"), shapes=SHAPES)
    assert out.tolist() == [[9, 10, 11], [0, 0, 0], [0, 1, 2]]


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_other_dtypes(dtype):
    x = np.array([[2**40, 1, 0], [0, 5, -(2**50)]], "int64").astype(dtype)
    out = evaluate(op.gather_rows, x, np.array([1, -1, 0, 1], "int32"), shapes=SHAPES)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, np.concatenate([x[1:], np.zeros((1, 3), dtype), x]))


def test_no_rows_give_zeros():
    out = evaluate(op.gather_rows, np.zeros((0, 3), "float32"), np.full(5, -1, "int32"), shapes=SHAPES)
    assert out.shape == (5, 3) and not out.any()


@pytest.mark.parametrize(
    "rows, value, expected",
    [(4, 4, "0 to 3, or -1"), (4, -2, "0 to 3, or -1"), (0, 0, "-1, as there are no rows")],
)
def test_an_index_out_of_range_is_named(rows, value, expected):
    index = np.array([-1, -1, value, value], "int32")
    with pytest.raises(ValueError, match=rf"index: entry 2 is {value}, expected .*{expected}"):
        evaluate(op.gather_rows, np.zeros((rows, 3), "float32"), index, shapes=SHAPES)


def test_channels_must_be_known():
    rows, channels = tvm.tirx.Var("n", "int64"), tvm.tirx.Var("c", "int64")
    x = relax.Var("x", relax.TensorType([rows, channels], "float32"))
    index = relax.Var("index", relax.TensorType([rows], "int32"))
    with pytest.raises(ValueError, match="x: expected sizes known at compile time in all dimensions but the rows, given c"):
        relax.BlockBuilder().normalize(op.gather_rows(x, index))


@pytest.mark.parametrize(
    "x, index, argument",
    [
        (relax.TensorType([4, 3], "float64"), relax.TensorType([5], "int32"), "x: expected .* float32 or bfloat16"),
        (relax.TensorType([4], "float32"), relax.TensorType([5], "int32"), "x: expected"),
        (relax.TensorType([4, 3], "float32"), relax.TensorType([5], "int64"), "index: expected .* int32"),
        (relax.TensorType(dtype="float32", ndim=2), relax.TensorType([5], "int32"), "x: expected a known shape"),
    ],
)
def test_wrong_types_are_named(x, index, argument):
    with pytest.raises(ValueError, match=rf"sparse_ops\.gather_rows: {argument}"):
        relax.BlockBuilder().normalize(op.gather_rows(relax.Var("x", x), relax.Var("index", index)))
