"""`channel_layer_norm`: its oracle, any number of spatial axes, wrong input."""

import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec.channel_layer_norm import naive


def arguments(*shape):
    rng = np.random.default_rng(0)
    return features(rng, *shape), features(rng, shape[1]), features(rng, shape[1])


def test_oracle_is_layer_norm_of_the_channels():
    args = arguments(2, 6, 3, 4, 5)
    x, weight, bias = (torch.from_numpy(array).double() for array in args)
    expected = torch.nn.functional.layer_norm(x.movedim(1, -1), [6], weight, bias, 1e-3).movedim(-1, 1)
    np.testing.assert_allclose(naive(*args, 1e-3), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 8), (1, 1, 5), (2, 33, 129), (1, 700, 5, 13), (2, 3, 8, 9, 10), (0, 4, 3), (2, 4, 0)])
def test_shapes(shape):
    args = arguments(*shape)
    out = evaluate(lambda *args: op.channel_layer_norm(*args, eps=0.1, activation="gelu"), *args)
    assert_close(out, naive(*args, 0.1, "gelu"), shape[1], dtype="float32")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"eps": -1.0}, "eps: expected a number above 0, given -1.0"),
        ({"activation": "elu"}, "activation: expected one of"),
        ({"x": [6]}, "x: expected .* of at least 2 dimensions"),
        ({"weight": [5]}, "weight: expected \\[6\\] of float32"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    given = {"x": [2, 6, 3], "weight": [6], "bias": [6], **change}
    given.update({name: relax.Var(name, relax.TensorType(given[name], "float32")) for name in ("x", "weight", "bias")})
    with pytest.raises(ValueError, match=rf"sparse_ops\.channel_layer_norm: {message}"):
        relax.BlockBuilder().normalize(op.channel_layer_norm(**given))
