"""`dense_group_norm`: its oracle, any number of spatial axes, groups, large means, wrong input."""

import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec.dense_group_norm import naive


def arguments(*shape, mean=0.0, dtype="float32"):
    rng = np.random.default_rng(0)
    x = (features(rng, *shape) + mean).astype(features(rng, 0, dtype=dtype).dtype)
    return x, features(rng, shape[1]), features(rng, shape[1])


def test_oracle_is_group_norm():
    args = arguments(2, 6, 3, 4, 5)
    x, weight, bias = (torch.from_numpy(array).double() for array in args)
    expected = torch.nn.functional.group_norm(x, 3, weight, bias, 1e-3)
    np.testing.assert_allclose(naive(*args, 3, 1e-3), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "shape, groups",
    [((3, 8), 4), ((1, 4, 9001), 1), ((2, 6, 7, 11), 6), ((1, 6, 17, 16, 16), 2), ((0, 4, 3), 2), ((2, 4, 0, 3), 2)],
)
def test_shapes(shape, groups):
    args = arguments(*shape)
    out = evaluate(lambda *args: op.dense_group_norm(*args, groups, eps=0.1, activation="gelu"), *args)
    assert_close(out, naive(*args, groups, 0.1, "gelu"), args[0][:1, : shape[1] // groups].size, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_mean_costs_no_accuracy(dtype):
    """Blocks of thousands of elements of the size of the mean; the bound is that of deviations of size 1."""
    args = arguments(1, 4, 30, 400, mean=1000.0, dtype=dtype)
    out = evaluate(lambda *args: op.dense_group_norm(*args, 2), *args)
    assert_close(out, naive(*args, 2), 1, dtype=dtype)


def test_constant_features_give_the_bias():
    x, weight, bias = arguments(2, 4, 5, 5)
    out = evaluate(lambda *args: op.dense_group_norm(*args, 2), np.full_like(x, 3.7), weight, bias)
    assert_close(out, np.broadcast_to(bias[:, None, None].astype("float64"), x.shape), dtype="float32")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"groups": 4}, "groups: expected a divisor of 6 channels, given 4"),
        ({"groups": 0}, "groups: expected an int of at least 1, given 0"),
        ({"eps": 0.0}, "eps: expected a number above 0, given 0.0"),
        ({"activation": "elu"}, "activation: expected one of"),
        ({"x": [6]}, "x: expected .* of at least 2 dimensions"),
        ({"x": [2, 0, 3], "weight": [0], "bias": [0]}, "x: expected at least 1 of channels"),
        ({"bias": [5]}, "bias: expected \\[6\\] of float32"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    given = {"x": [2, 6, 3], "weight": [6], "bias": [6], "groups": 3, **change}
    given.update({name: relax.Var(name, relax.TensorType(given[name], "float32")) for name in ("x", "weight", "bias")})
    with pytest.raises(ValueError, match=rf"sparse_ops\.dense_group_norm: {message}"):
        relax.BlockBuilder().normalize(op.dense_group_norm(**given))
