"""`channel_affine`: its oracle against torch's batch norm, any number of spatial axes, wrong input."""

import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close
from tir_kernels.spec.channel_affine import naive, of_batch_norm


def arguments(*shape):
    rng = np.random.default_rng(0)
    return features(rng, *shape), features(rng, shape[1]), features(rng, shape[1])


def test_oracle_is_batch_norm_with_running_statistics():
    x, weight, bias = arguments(2, 6, 3, 4)
    mean, variance = features(np.random.default_rng(1), 6), np.arange(6, dtype="float32")
    for affine in ((weight, bias), (None, None)):
        given = (None if array is None else torch.from_numpy(array).double() for array in (x, mean, variance, *affine))
        expected = torch.nn.functional.batch_norm(*given, eps=1e-3)
        np.testing.assert_allclose(naive(x, *of_batch_norm(mean, variance, *affine, 1e-3)), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "shape", [(3, 8), (700, 1), (2, 9000), (1, 1, 5), (2, 3, 8193), (2, 3, 8, 9, 10), (0, 4, 3), (2, 4, 0)]
)
def test_shapes(shape):
    args = arguments(*shape)
    out = evaluate(lambda *args: op.channel_affine(*args, activation="gelu"), *args)
    assert_close(out, naive(*args, "gelu"), 2, dtype="float32")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"activation": "elu"}, "activation: expected one of"),
        ({"x": [6]}, "x: expected .* of at least 2 dimensions"),
        ({"scale": [5]}, "scale: expected \\[6\\] of float32"),
        ({"shift": [6, 1]}, "shift: expected \\[6\\] of float32"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    given = {"x": [2, 6, 3], "scale": [6], "shift": [6], **change}
    given.update({name: relax.Var(name, relax.TensorType(given[name], "float32")) for name in ("x", "scale", "shift")})
    with pytest.raises(ValueError, match=rf"sparse_ops\.channel_affine: {message}"):
        relax.BlockBuilder().normalize(op.channel_affine(**given))
