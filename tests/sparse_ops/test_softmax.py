"""`softmax`: its oracle, any rank and size, logits that overflow, infinities, wrong input."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate, module_of, run
from tests.tolerance import assert_close
from tir_kernels.spec.softmax import naive


def test_oracle_is_softmax():
    x = features(np.random.default_rng(0), 5, 6, 7)
    np.testing.assert_allclose(naive(x), scipy.special.softmax(x.astype("float64"), axis=-1), atol=1e-15)


@pytest.mark.parametrize("shape", [(1,), (40,), (3, 1), (2, 3, 0), (0, 5), (2, 0, 3, 4), (3, 20_000)])
def test_shapes(shape):
    x = features(np.random.default_rng(1), *shape)
    assert_close(evaluate(op.softmax, x), naive(x), max(shape[-1], 1), dtype="float32")


@pytest.fixture(scope="module")
def compiled():
    """Softmax of rows, compiled once for every size."""
    return build(module_of(op.softmax, [np.zeros((1, 1), "float32")], [("n", "c")]))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(1, 150),
    st.floats(0, 1e38),
    st.sampled_from([0.0, 100.0, -3e38, 2e38]),
    st.integers(0, 2**32 - 1),
)
def test_rows_are_distributions(compiled, rows, columns, spread, shift, seed):
    """However large the logits: no overflow, no NaN, and each row sums to one."""
    rng = np.random.default_rng(seed)
    x = np.clip(rng.uniform(-1, 1, (rows, columns)) * spread + shift, -3.4e38, 3.4e38).astype("float32")
    (out,) = run(compiled, [x])
    assert_close(out, naive(x), columns, dtype="float32")
    assert_close(out.sum(1, dtype="float64"), np.ones(rows), columns, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_infinities_and_nan(dtype):
    inf, nan = np.inf, np.nan
    x = np.array([[-inf, 0, -inf], [-inf, -inf, -inf], [inf, 0, 1], [nan, 0, 1], [3e38, -3e38, 3e38]])
    out = evaluate(op.softmax, x.astype(features(np.random.default_rng(0), 0, dtype=dtype).dtype)).astype("float64")
    np.testing.assert_array_equal(out, [[0, 1, 0], [nan] * 3, [nan] * 3, [nan] * 3, [0.5, 0, 0.5]])


@pytest.mark.parametrize(
    "shape, dtype, expected",
    [([4, 3], "int32", "a tensor of float32 or bfloat16"), ([], "float32", "with a known shape of at least 1 dimensions")],
)
def test_wrong_input_is_named(shape, dtype, expected):
    with pytest.raises(ValueError, match=rf"sparse_ops\.softmax: x: expected .*{expected}"):
        relax.BlockBuilder().normalize(op.softmax(relax.Var("x", relax.TensorType(shape, dtype))))
