"""Activations that are written out as arithmetic -> `R.nn.silu`, `R.nn.gelu` and `R.nn.gelu_tanh`."""

from math import isclose, pi, sqrt

import tvm
from tvm import relax

from .rewrite import Walk, one_plus, op_is, rewrite_pass, scalar, summands_of
from .rows import is_feature

ACTIVATIONS = {"nn.relu": "relu", "nn.silu": "silu", "nn.gelu": "gelu", "nn.gelu_tanh": "gelu_tanh"}  # as our ops name them


def activation_of(call: relax.Call) -> str | None:
    """Which activation of our ops a call is, if it is one."""
    if op_is(call, "sparse_ops.activation"):
        return str(call.attrs["name"])
    return ACTIVATIONS.get(call.op.name.removeprefix("relax."))


def RecognizeActivation() -> tvm.transform.Pass:
    """Products that are an activation, in any order and association of their factors, become that activation.

    silu(x) = x * sigmoid(x)
    gelu(x) = 0.5 * x * (1 + erf(x / sqrt(2)))
    gelu_tanh(x) = 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))
    """
    return rewrite_pass("RecognizeActivation", _recognize)


def _recognize(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if not op_is(call, "multiply", "divide") or not is_feature(call):
        return None
    constant, factors = factors_of(walk, call)
    if len(factors) != 2:
        return None
    for x, other in (factors, factors[::-1]):
        if isclose(constant, 1) and _argument(walk, other, "sigmoid") == x:
            return relax.op.nn.silu(x)
        if isclose(constant, 0.5) and (inner := one_plus(walk, other)) is not None:
            if (erf := _argument(walk, inner, "erf")) is not None and _is_product(walk, erf, sqrt(0.5), [x]):
                return relax.op.nn.gelu(x)
            if (tanh := _argument(walk, inner, "tanh")) is not None and _is_cubic(walk, tanh, x):
                return relax.op.nn.gelu_tanh(x)
    return None


def factors_of(walk: Walk, expr: relax.Expr) -> tuple[float, list[relax.Expr]]:
    """A product as a constant and the other factors; what is read elsewhere too is a factor as it is."""
    if (value := scalar(expr)) is not None:
        return value, []
    call = walk.value(expr)
    if not (isinstance(call, relax.Call) and op_is(call, "multiply", "divide", "power") and walk.is_read_once(expr)):
        return 1.0, [expr]
    constant, factors = factors_of(walk, call.args[0])
    right = scalar(call.args[1])
    if op_is(call, "multiply"):
        more, others = factors_of(walk, call.args[1])
        return constant * more, factors + others
    if op_is(call, "divide"):
        return (constant / right, factors) if right else (1.0, [expr])
    return (constant**3, factors * 3) if right == 3 else (1.0, [expr])


def _argument(walk: Walk, expr: relax.Expr, op: str) -> relax.Expr | None:
    call = walk.call_of(expr, op)
    return None if call is None else call.args[0]


def _is_product(walk: Walk, expr: relax.Expr, constant: float, factors: list[relax.Expr]) -> bool:
    found, others = factors_of(walk, expr)
    return isclose(found, constant, rel_tol=1e-6) and others == factors  # constants are float32


def _is_cubic(walk: Walk, expr: relax.Expr, x: relax.Expr) -> bool:
    """Whether `expr` is sqrt(2 / pi) * (x + 0.044715 * x^3)."""
    constant, factors = factors_of(walk, expr)
    if len(factors) != 1 or not isclose(constant, sqrt(2 / pi), rel_tol=1e-6):
        return False
    summands = summands_of(walk, factors[0])
    return x in summands and any(_is_product(walk, summand, 0.044715, [x] * 3) for summand in summands)
