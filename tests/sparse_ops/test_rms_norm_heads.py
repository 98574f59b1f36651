"""`rms_norm_heads`: rows of zeros, many channels, wrong input."""

import numpy as np
import pytest
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec.rms_norm_heads import naive


@pytest.mark.parametrize("depth", [1, 32, 64, 129])
def test_depths(depth):
    rng = np.random.default_rng(depth)
    x, gamma = features(rng, 20, 2, depth), features(rng, 2, depth)
    x[3] = 0
    out = evaluate(op.rms_norm_heads, x, gamma)
    assert_close(out, naive(x, gamma), depth, dtype="float32")
    assert not out[3].any()


def test_a_wrong_gamma_is_named():
    x, gamma = (relax.Var("x", relax.TensorType(shape, "float32")) for shape in ([4, 2, 8], [8, 2]))
    with pytest.raises(ValueError, match=r"sparse_ops\.rms_norm_heads: gamma: expected \[2, 8\] of float32"):
        relax.BlockBuilder().normalize(op.rms_norm_heads(x, gamma))
