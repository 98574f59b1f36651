"""The functions of `tir_kernels.vector_math` against float64: the errors that their docstrings state, all exponents."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import tvm
from scipy.special import erf, erfc
from tvm.script import tirx as T

from tir_kernels import vector_math as activation
from tir_kernels.dispatch import host_target
from tir_kernels.spec.activation import ACTIVATIONS

INF, NAN = np.inf, np.nan
TARGETS = {"host": host_target(), "baseline": tvm.target.Target({"kind": "llvm"})}  # which on x86 has no fused multiply-add


@dataclass(frozen=True)
class Bound:
    """For arguments above `above`: an error of at most `ulp` units in the last place of the result, and at most `absolute`."""

    ulp: float = INF
    absolute: float = INF
    above: float = -INF


@dataclass(frozen=True)
class Function:
    """`naive` in float64; `bounds` in ascending order, the last that applies holds; results at plus and minus infinity."""

    name: str
    naive: Callable
    bounds: list[Bound]
    at_infinity: tuple[float, float]
    emit: Callable = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "emit", getattr(activation, self.name))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = [
    Function("exp", np.exp, [Bound(absolute=2**-126.5), Bound(1.3, above=-87.68), Bound(4.5, above=88.37)], (INF, 0)),
    Function("expm1", np.expm1, [Bound(2.5), Bound(4.5, above=88.37)], (INF, -1)),
    Function("tanh", np.tanh, [Bound(2.9)], (1, -1)),
    Function("erf", erf, [Bound(4.5, 1.2e-7)], (1, -1)),
    Function("silu", lambda x: x * sigmoid(x), [Bound(absolute=1e-36), Bound(2.5, above=-88)], (INF, NAN)),
    Function("gelu", lambda x: 0.5 * x * erfc(-x * 0.5**0.5), [Bound(absolute=8e-8), Bound(4, above=-1)], (INF, 0)),
    Function(
        "gelu_tanh",
        lambda x: x * sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
        [Bound(absolute=5e-8), Bound(2.6, above=-1)],
        (INF, NAN),
    ),
]


def sweep() -> np.ndarray:
    """Finite float32 numbers: 1000 of either sign with every exponent, and where the functions bend, some 800,000."""
    rng = np.random.default_rng(0)
    mantissas = rng.integers(0, 2**23, (255, 1000), dtype=np.uint32)
    mantissas[:, :2] = 0, 2**23 - 1
    positive = ((np.arange(255, dtype=np.uint32)[:, None] << 23) | mantissas).view("float32").ravel()
    bends = [np.linspace(-low, high, 400_000, dtype="float32") for low, high in ((104, 89), (12, 12))]
    return np.concatenate([positive, -positive, *bends])


def evaluate(emit: Callable, x: np.ndarray, target: tvm.target.Target) -> np.ndarray:
    """emit(x), compiled for `target`."""

    @T.prim_func(s_tir=True)
    def kernel(x_: T.handle, out_: T.handle):
        n = T.int64()
        x = T.match_buffer(x_, (n,), "float32")
        out = T.match_buffer(out_, (n,), "float32")
        for i in range(n):
            out[i] = emit(x[i])

    out = tvm.runtime.tensor(np.full_like(x, np.nan))
    tvm.compile(kernel, target=target)(tvm.runtime.tensor(x), out)
    return out.numpy()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
@np.errstate(over="ignore", invalid="ignore")
def test_error(function, target):
    x = sweep()
    out, exact = evaluate(function.emit, x, target), function.naive(x.astype("float64"))
    rounded = exact.astype("float32")
    ulp, allowed = np.spacing(np.abs(rounded)).astype("float64"), np.zeros(x.shape)
    for bound in function.bounds:
        allowed = np.where(x > bound.above, np.minimum(bound.ulp * ulp, bound.absolute), allowed)
    wrong = np.flatnonzero(np.where(np.isinf(rounded), out != rounded, ~(np.abs(out - exact) <= allowed)))
    examples = [f"f({x[i]}) = {out[i]}, not {exact[i]}: {abs(out[i] - exact[i]) / ulp[i]} ulp" for i in wrong[:3]]
    assert not len(wrong), f"{len(wrong)} of {len(x)}: {'; '.join(examples)}"


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_special_values(function, target):
    x = np.array([NAN, -NAN, INF, -INF] * 8, "float32")  # enough to fill vectors
    expected = np.array([NAN, NAN, *function.at_infinity] * 8)
    np.testing.assert_array_equal(evaluate(function.emit, x, target), expected)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_relu_keeps_nan(target):
    x = np.array([NAN, INF, -INF, -1, 0, 1] * 6, "float32")
    np.testing.assert_array_equal(evaluate(activation.EMIT["relu"], x, target), [NAN, INF, 0, 0, 0, 1] * 6)


def test_oracles_agree():
    """The oracles of the fused activations are the functions above."""
    x = np.linspace(-9, 9, 1001)
    for function in FUNCTIONS[-3:]:
        np.testing.assert_allclose(ACTIVATIONS[function.name](x), function.naive(x), rtol=1e-12, atol=1e-15)
