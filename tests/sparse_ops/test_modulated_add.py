"""`modulated_add`: a gate for every batch element, wrong input."""

import numpy as np
import pytest
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec.modulated_add import naive


def arguments():
    rng = np.random.default_rng(0)
    x, y, gate = features(rng, 50, 13), features(rng, 50, 13), features(rng, 3, 13)
    return x, y, gate, rng.integers(0, 3, 50).astype("int32")


def test_a_gate_for_every_batch_element():
    args = arguments()
    assert_close(evaluate(op.modulated_add, *args), naive(*args), 2, dtype="float32")


def test_a_batch_index_out_of_range_is_named():
    *args, index = arguments()
    index[7] = 3
    with pytest.raises(ValueError, match=r"batch_index: row 7 is 3, expected 0 to 2"):
        evaluate(op.modulated_add, *args, index)


def test_many_gates_need_an_index():
    args = [relax.Var("a", relax.TensorType(array.shape, str(array.dtype))) for array in arguments()]
    with pytest.raises(ValueError, match=r"sparse_ops\.modulated_add: gate: expected \[1, 13\] of float32"):
        relax.BlockBuilder().normalize(op.modulated_add(*args[:3]))
