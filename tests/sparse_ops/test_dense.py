"""`to_dense` and `from_dense`: channels last, there and back, wrong coordinates."""

import numpy as np
import pytest
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tir_kernels.spec.dense import naive_from_dense, naive_to_dense

SHAPE = (3, 4, 5)
SHAPES = [("n", 7), ("n", 4)]


def example(rows: int = 60):
    rng = np.random.default_rng(0)
    cells = rng.permutation(2 * 60)[:rows]
    return features(rng, rows, 7), np.stack(np.unravel_index(cells, (2, *SHAPE)), 1).astype("int32")


@pytest.mark.parametrize("channels_last", [False, True])
def test_oracle_row_by_row(channels_last):
    x, coords = example()
    dense = naive_to_dense(x, coords, 2, SHAPE, channels_last)
    assert dense.shape == ((2, *SHAPE, 7) if channels_last else (2, 7, *SHAPE))
    for row, (b, i, j, k) in enumerate(coords):
        assert (dense[(b, i, j, k) if channels_last else (b, slice(None), i, j, k)] == x[row]).all()
    assert np.count_nonzero(dense) == np.count_nonzero(x)


@pytest.mark.parametrize("rows", [0, 60, 120])
def test_there_and_back_with_channels_last(rows):
    x, coords = example(rows)
    dense = evaluate(lambda x, c: op.to_dense(x, c, 2, SHAPE, channels_last=True), x, coords, shapes=SHAPES)
    assert (dense == naive_to_dense(x, coords, 2, SHAPE, True)).all()
    back = evaluate(lambda d, c: op.from_dense(d, c, channels_last=True), dense, coords)
    assert (back == x).all() and (naive_from_dense(dense, coords, True) == x).all()


@pytest.mark.parametrize(
    "column, value, message",
    [(0, 2, "batch index 2, expected 0 to 1"), (1, -1, "x -1, expected 0 to 2"), (3, 5, "z 5, expected 0 to 4")],
)
def test_coordinates_outside_are_named(column, value, message):
    x, coords = example()
    coords[[8, 11], column] = value
    with pytest.raises(ValueError, match=f"coords: row 8 has {message}"):
        evaluate(lambda x, c: op.to_dense(x, c, 2, SHAPE), x, coords)
    with pytest.raises(ValueError, match=f"coords: row 8 has {message}"):
        evaluate(op.from_dense, np.zeros((2, 7, *SHAPE), "float32"), coords)


def test_a_repeated_coordinate_is_named():
    x, coords = example()
    coords[20] = coords[4]
    with pytest.raises(ValueError, match=r"coords: row 20 repeats the coordinates of row 4"):
        evaluate(lambda x, c: op.to_dense(x, c, 2, SHAPE), x, coords)


def test_wrong_arguments_are_named():
    x, coords, dense = (
        relax.Var("a", relax.TensorType(shape, dtype))
        for shape, dtype in (([4, 7], "float32"), ([5, 4], "int32"), ([2, 7, *SHAPE], "int32"))
    )
    bb = relax.BlockBuilder()
    with pytest.raises(ValueError, match=r"sparse_ops\.to_dense: coords: expected \[4, 4\] of int32"):
        bb.normalize(op.to_dense(x, coords, 2, SHAPE))
    with pytest.raises(ValueError, match=r"sparse_ops\.to_dense: shape: expected"):
        op.to_dense(x, coords, 2, (3, 4))
    with pytest.raises(ValueError, match=r"sparse_ops\.to_dense: batch: expected an int of at least 1"):
        op.to_dense(x, coords, 0, SHAPE)
    with pytest.raises(ValueError, match=r"sparse_ops\.from_dense: dense: expected .* float32 or bfloat16"):
        bb.normalize(op.from_dense(dense, coords))
