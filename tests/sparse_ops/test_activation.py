"""`activation`: every one against torch, any rank, any size, wrong input."""

import inspect

import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.testing.examples import features
from tests.sparse_ops.walk import evaluate
from tests.tolerance import assert_close

TORCH = {
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("name", TORCH)
def test_names(name):
    x = np.concatenate([features(np.random.default_rng(0), 20000), np.linspace(-100, 100, 999), [0.0]]).astype("float32")
    expected = TORCH[name](torch.from_numpy(x).double()).numpy()
    out = evaluate(lambda x: op.activation(x, name), x, shapes=[("n",)])
    assert_close(out, expected, dtype="float32")
    assert_close(out[:20000], expected[:20000], dtype="float32")  # on the scale of small values


@pytest.mark.parametrize("shape", [(1,), (3, 1, 5, 2, 7), (4, 0)])
def test_ranks(shape):
    x = features(np.random.default_rng(1), *shape)
    assert (evaluate(lambda x: op.activation(x, "relu"), x) == np.maximum(x, 0)).all()


def test_wrong_arguments_are_named():
    x = relax.Var("x", relax.TensorType([4], "int32"))
    with pytest.raises(ValueError, match=r"sparse_ops\.activation: name: expected one of 'relu', .* given 'none'"):
        op.activation(x, "none")
    with pytest.raises(ValueError, match=r"sparse_ops\.activation: x: expected a tensor of float32 or bfloat16"):
        relax.BlockBuilder().normalize(op.activation(x, "relu"))


def test_docstrings_name_the_one_list():
    """None enumerates names of its own, which would be left behind by the next one."""
    takers = [getattr(op, name) for name in op.__all__]
    takers = [taker for taker in takers if "activation" in inspect.signature(taker).parameters]
    assert len(takers) >= 8
    for taker in takers:
        assert "activation one of `ACTIVATIONS`" in " ".join(taker.__doc__.split()), taker.__name__
        assert '"gelu' not in taker.__doc__, taker.__name__
