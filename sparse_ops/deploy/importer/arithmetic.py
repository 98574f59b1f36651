"""Arithmetic on tensors and numbers, with torch's rules of which dtype is computed in."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tvm import relax

from .context import Context, dtype_name
from .registry import converts


def common_dtype(context: Context, *names: str) -> str:
    """In which torch computes with these arguments."""
    kinds = {torch.SymInt: 1, torch.SymFloat: 1.0, torch.SymBool: True}
    values = [context.meta(name) for name in names]
    return dtype_name(torch.result_type(*(kinds.get(type(value), value) for value in values)))


def is_integer(dtype: str) -> bool:
    return dtype == "bool" or dtype.startswith(("int", "uint"))


def operands(context: Context, dtype: str, *names: str) -> list[relax.Expr]:
    return [context.tensor(context[name], dtype) for name in names]


def _binary(op: Callable[..., relax.Expr], names: tuple[str, str], context: Context) -> relax.Expr:
    """Computed in the dtype of the result."""
    a, b = operands(context, context.dtype, *names)
    alpha = context.args.get("alpha", 1)
    if alpha != 1:
        b = context.emit(relax.op.multiply(b, context.tensor(alpha, context.dtype)))
    return context.emit(op(a, b))


for _name, _op in (
    ("add.Tensor", relax.op.add),
    ("add.Scalar", relax.op.add),
    ("sub.Tensor", relax.op.subtract),
    ("sub.Scalar", relax.op.subtract),
    ("mul.Tensor", relax.op.multiply),
    ("mul.Scalar", relax.op.multiply),
    ("div.Tensor", relax.op.divide),
    ("div.Scalar", relax.op.divide),
    ("floor_divide", relax.op.floor_divide),
    ("remainder.Tensor", relax.op.floor_mod),
    ("remainder.Scalar", relax.op.floor_mod),
    ("maximum", relax.op.maximum),
    ("minimum", relax.op.minimum),
):
    converts(f"aten::{_name}")(partial(_binary, _op, ("self", "other")))


@converts("aten::div.Tensor_mode", "aten::div.Scalar_mode")
def div_mode(context: Context) -> relax.Expr:
    a, b = operands(context, context.dtype, "self", "other")
    if context["rounding_mode"] == "floor":
        return context.emit(relax.op.floor_divide(a, b))
    quotient = context.emit(relax.op.divide(a, b))  # of integers it is rounded towards 0
    rounded = context["rounding_mode"] is None or is_integer(context.dtype)
    return quotient if rounded else context.emit(relax.op.trunc(quotient))


@converts("aten::rsub.Scalar", "aten::rsub.Tensor")
def rsub(context: Context) -> relax.Expr:
    a, b = operands(context, context.dtype, "self", "other")
    if context["alpha"] != 1:
        a = context.emit(relax.op.multiply(a, context.tensor(context["alpha"], context.dtype)))
    return context.emit(relax.op.subtract(b, a))


def _comparison(op: Callable[..., relax.Expr], context: Context) -> relax.Expr:
    """Computed in the dtype that both promote to."""
    dtype = common_dtype(context, "self", "other")
    dtype = "int32" if dtype == "bool" else dtype
    return context.emit(op(*operands(context, dtype, "self", "other")))


for _name, _op in (
    ("eq", relax.op.equal),
    ("ne", relax.op.not_equal),
    ("lt", relax.op.less),
    ("le", relax.op.less_equal),
    ("gt", relax.op.greater),
    ("ge", relax.op.greater_equal),
):
    converts(f"aten::{_name}.Tensor", f"aten::{_name}.Scalar")(partial(_comparison, _op))


def _logical(op: Callable[..., relax.Expr], context: Context) -> relax.Expr:
    return context.emit(op(*(truth(context, context[name]) for name in ("self", "other"))))


for _name, _op in (("and", relax.op.logical_and), ("or", relax.op.logical_or), ("xor", relax.op.logical_xor)):
    converts(f"aten::logical_{_name}")(partial(_logical, _op))


@converts("aten::logical_not")
def logical_not(context: Context) -> relax.Expr:
    return context.emit(relax.op.logical_not(truth(context, context["self"])))


def truth(context: Context, tensor: relax.Expr) -> relax.Expr:
    """Whether elements are not 0."""
    dtype = str(tensor.ty.dtype)
    return tensor if dtype == "bool" else context.emit(relax.op.not_equal(tensor, relax.const(0, dtype)))


def _bitwise(op: Callable[..., relax.Expr], of_bools: Callable[..., relax.Expr], context: Context) -> relax.Expr:
    a, b = operands(context, context.dtype, "self", "other")
    return context.emit((of_bools if context.dtype == "bool" else op)(a, b))


for _name, _op, _of_bools in (
    ("and", relax.op.bitwise_and, relax.op.logical_and),
    ("or", relax.op.bitwise_or, relax.op.logical_or),
    ("xor", relax.op.bitwise_xor, relax.op.logical_xor),
):
    converts(f"aten::bitwise_{_name}.Tensor", f"aten::bitwise_{_name}.Scalar")(partial(_bitwise, _op, _of_bools))


@converts("aten::bitwise_not")
def bitwise_not(context: Context) -> relax.Expr:
    op = relax.op.logical_not if context.dtype == "bool" else relax.op.bitwise_not
    return context.emit(op(context["self"]))


@converts("aten::where.self", "aten::where.ScalarOther", "aten::where.ScalarSelf", "aten::where.Scalar")
def where(context: Context) -> relax.Expr:
    a, b = operands(context, context.dtype, "self", "other")
    return context.emit(relax.op.where(truth(context, context["condition"]), a, b))


@converts("aten::masked_fill.Scalar", "aten::masked_fill.Tensor")
def masked_fill(context: Context) -> relax.Expr:
    value = context.tensor(context["value"], context.dtype)
    return context.emit(relax.op.where(context["mask"], value, context["self"]))


@converts("aten::clamp", "aten::clamp_min", "aten::clamp_max", "aten::clamp.Tensor")
def clamp(context: Context) -> relax.Expr:
    """TVM's clip where the bounds are floats, which its passes know."""
    low, high = context.args.get("min"), context.args.get("max")
    if not is_integer(context.dtype) and all(isinstance(bound, int | float | None) for bound in (low, high)):
        return context.default()
    x = context.cast(context["self"], context.dtype)
    for bound, op in ((low, relax.op.maximum), (high, relax.op.minimum)):
        if bound is not None:
            x = context.emit(op(x, context.tensor(bound, context.dtype)))
    return x


@converts("aten::pow.Tensor_Scalar", "aten::pow.Tensor_Tensor", "aten::pow.Scalar")
def power(context: Context) -> relax.Expr:
    exponent = context["exponent"]
    if is_integer(context.dtype) and not (isinstance(exponent, int) and exponent >= 0):
        context.refuse("expected a power that is known and not negative of an integer")
    if isinstance(exponent, int) and 0 <= exponent <= 4 and is_integer(context.dtype):
        x = context.cast(context["self"], context.dtype)
        result: Any = context.full(context.dims(x), 1, context.dtype)
        for _ in range(exponent):
            result = context.emit(relax.op.multiply(result, x))
        return result
    if all(isinstance(value, int | float | relax.Expr) for value in (context["self"], exponent)):
        a, b = operands(context, context.dtype, "self", "exponent")
        return context.emit(relax.op.power(a, b))
    return context.default()
