"""`group_norm`: its oracle, large means, constant features, other options, wrong input."""

import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec.group_norm import naive


def arguments(rows, channels, offsets, mean=0.0, dtype="float32"):
    rng = np.random.default_rng(0)
    x = (features(rng, rows, channels) + mean).astype(features(rng, 0, dtype=dtype).dtype)
    return x, np.array(offsets, "int32"), features(rng, channels), features(rng, channels)


def test_oracle_is_dense_group_norm():
    x, offsets, weight, bias = arguments(90, 6, [0, 30, 30, 90])
    out = naive(x, offsets, weight, bias, 3, 1e-3)
    for first, last in ((0, 30), (30, 90)):
        part = torch.from_numpy(x[first:last].T[None]).double()
        expected = torch.nn.functional.group_norm(part, 3, *map(torch.from_numpy, map(np.float64, (weight, bias))), 1e-3)
        np.testing.assert_allclose(out[first:last], expected[0].numpy().T, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 34])
def test_groups(groups):
    args = arguments(700, 34, [0, 0, 100, 611, 700])
    out = evaluate(lambda *args: op.group_norm(*args, groups, eps=0.1, activation="gelu_tanh"), *args)
    assert_close(out, naive(*args, groups, 0.1, "gelu_tanh"), 511 * 34 // groups, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_mean_costs_no_accuracy(dtype):
    """Thousands of rows of the size of the mean; the bound is that of deviations of size 1."""
    args = arguments(3000, 32, [0, 2900, 3000], mean=1000.0, dtype=dtype)
    out = evaluate(lambda *args: op.group_norm(*args, 4), *args)
    assert_close(out, naive(*args, 4), 1, dtype=dtype)


def test_constant_features_give_the_bias():
    x, offsets, weight, bias = arguments(50, 4, [0, 50])
    out = evaluate(lambda *args: op.group_norm(*args, 2), np.full_like(x, 3.7), offsets, weight, bias)
    assert_close(out, np.tile(bias.astype("float64"), (50, 1)), dtype="float32")


@pytest.mark.parametrize(
    "offsets, message",
    [
        ([0, 3], "from 0 to 3, expected offsets from 0 to the 4 rows"),
        ([1, 4], "from 1 to 4, expected offsets from 0 to the 4 rows"),
        ([0, 3, 2, 4], "entry 2 is 2 after 3, expected ascending offsets"),
    ],
)
def test_offsets_that_do_not_fit_are_named(offsets, message):
    args = arguments(4, 2, offsets)
    with pytest.raises(ValueError, match=f"batch_offsets: {message}"):
        evaluate(lambda *args: op.group_norm(*args, 1), *args)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"groups": 4}, "groups: expected a divisor of 6 channels, given 4"),
        ({"groups": 0}, "groups: expected an int of at least 1, given 0"),
        ({"groups": 2, "eps": 0.0}, "eps: expected a number above 0, given 0.0"),
        ({"groups": 2, "activation": "elu"}, "activation: expected one of"),
    ],
)
def test_wrong_options_are_named(options, message):
    shapes = {"x": [4, 6], "batch_offsets": [2], "weight": [6], "bias": [6]}
    dtypes = {"batch_offsets": "int32"}
    args = [relax.Var(n, relax.TensorType(s, dtypes.get(n, "float32"))) for n, s in shapes.items()]
    with pytest.raises(ValueError, match=rf"sparse_ops\.group_norm: {message}"):
        relax.BlockBuilder().normalize(op.group_norm(*args, **options))


def test_a_wrong_weight_is_named():
    args = [relax.Var("a", relax.TensorType(s, d)) for s, d in (([4, 6], "bfloat16"), ([2], "int32"), ([6], "bfloat16"))]
    with pytest.raises(ValueError, match=r"sparse_ops\.group_norm: weight: expected \[6\] of float32"):
        relax.BlockBuilder().normalize(op.group_norm(*args, args[2], 2))
