"""`batch_offsets`: a symbolic batch, rows that do not ascend, batch indices out of range."""

import numpy as np
import pytest
from tvm import relax

from sparse_ops import op
from tests.sparse_ops.walk import evaluate


def coords_of(*batch: int) -> np.ndarray:
    return np.array([(b, 7, -7, 7) for b in batch], "int32").reshape(-1, 4)


@pytest.mark.parametrize("batch", [(), (0,), (3,), (0, 0, 2), (1, 1, 3, 3)])
def test_offsets_with_a_symbolic_batch(batch):
    def call(coords, like):
        return op.batch_offsets(coords, like.ty.shape.values[0])

    out = evaluate(call, coords_of(*batch), np.zeros((4, 1), "float32"), shapes=[("n", 4), ("b", 1)])
    assert out.tolist() == [sum(b < limit for b in batch) for limit in range(5)]


@pytest.mark.parametrize(
    "batch, message",
    [
        ((0, 1, 0), "row 2 has batch index 0 after 1, expected the rows of each batch element together"),
        ((0, 2), "row 1 has batch index 2, expected 0 to 1"),
        ((-1, 0), "row 0 has batch index -1, expected 0 to 1"),
    ],
)
def test_wrong_rows_are_named(batch, message):
    with pytest.raises(ValueError, match=f"coords: {message}"):
        evaluate(lambda coords: op.batch_offsets(coords, 2), coords_of(*batch), shapes=[("n", 4)])


@pytest.mark.parametrize("batch", [0, -1, 1.0, True])
def test_a_wrong_batch_is_named(batch):
    coords = relax.Var("coords", relax.TensorType([2, 4], "int32"))
    with pytest.raises(ValueError, match=r"sparse_ops\.batch_offsets: batch: expected an int of at least 1"):
        op.batch_offsets(coords, batch)
