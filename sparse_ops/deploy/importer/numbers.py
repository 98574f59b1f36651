"""Numbers that the data decide: elements of tensors as dimensions, and arithmetic on them.

An integer is an int or a dimension (`tvm.tirx` expression), a float is a Python float or a float64 tensor without dimensions.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import relax

from .context import Context
from .registry import PYTHON, converts
from .sizes import count, floor_div, floor_mod, is_number, largest, plain, smallest


@converts("aten::item", "aten::_local_scalar_dense")
def item(context: Context) -> Any:
    """An integer as a dimension, a float as a tensor without dimensions."""
    tensor = context["self"]
    dtype = str(tensor.ty.dtype)
    if dtype == "bool":
        context.refuse("a decision that the data make is none that a graph can hold")
    if dtype.startswith(("int", "uint")):
        return context.number(tensor)
    return context.cast(context.reshape(tensor, []), "float64")


@converts("aten::sym_size.int")
def sym_size(context: Context) -> Any:
    return context.dims(context["self"])[context["dim"]]


@converts("aten::sym_numel", "aten::numel")
def sym_numel(context: Context) -> Any:
    return count(context.dims(context["self"]))


@converts("aten::sym_constrain_range", "aten::sym_constrain_range_for_size", "aten::_assert_scalar")
def nothing(context: Context) -> None:
    return None


@converts(f"{PYTHON}::getitem")
def getitem(context: Context) -> Any:
    values, place = context["0"], context["1"]
    if isinstance(values, relax.Expr) and isinstance(values.ty, relax.TupleType):
        return context.emit(relax.TupleGetItem(values, place))
    return values[place] if isinstance(values, list | tuple | relax.ShapeExpr | relax.Tuple) else context.default()


def as_float(context: Context, value: Any) -> relax.Expr:
    return context.tensor(float(value) if isinstance(value, int | float) else value, "float64")


def _binary(
    of_integers: Callable[[Any, Any], Any] | None, of_floats: Callable[..., relax.Expr], plainly: Callable, context: Context
) -> Any:
    """`of_integers`: None where the result of two integers is a float."""
    a, b = (plain(context[name]) for name in ("0", "1"))
    if all(isinstance(value, int | float) for value in (a, b)):
        return plainly(a, b)
    if of_integers is not None and is_number(a) and is_number(b):
        return of_integers(a, b)
    return context.emit(of_floats(as_float(context, a), as_float(context, b)))


def _power(a: Any, b: Any) -> Any:
    if not isinstance(b, int) or b < 0:
        raise ValueError("expected a power that is known and not negative")
    return count([a] * b)


for _names, _of_integers, _of_floats, _plainly in (
    (("add",), operator.add, relax.op.add, operator.add),
    (("sub",), operator.sub, relax.op.subtract, operator.sub),
    (("mul",), operator.mul, relax.op.multiply, operator.mul),
    (("floordiv",), floor_div, relax.op.floor_divide, operator.floordiv),
    (("mod",), floor_mod, relax.op.floor_mod, operator.mod),
    (("sym_max", "max"), largest, relax.op.maximum, max),
    (("sym_min", "min"), smallest, relax.op.minimum, min),
    (("pow", "pow_by_natural", "float_pow"), None, relax.op.power, operator.pow),
    (("truediv", "int_true_div"), None, relax.op.divide, operator.truediv),
):
    converts(*(f"{PYTHON}::{name}" for name in _names))(partial(_binary, _of_integers, _of_floats, _plainly))


@converts(f"{PYTHON}::neg")
def negated(context: Context) -> Any:
    value = context["0"]
    return 0 - value if is_number(value) else context.emit(relax.op.negative(value))


@converts(f"{PYTHON}::sym_float")
def sym_float(context: Context) -> Any:
    return as_float(context, context["0"])


@converts(f"{PYTHON}::sym_sqrt", f"{PYTHON}::_sym_sqrt", f"{PYTHON}::sqrt")
def sym_sqrt(context: Context) -> Any:
    return context.emit(relax.op.sqrt(as_float(context, context["0"])))


def _whole(op: Callable[[relax.Expr], relax.Expr], context: Context) -> Any:
    """A float as an integer."""
    value = context["0"]
    return value if is_number(value) else context.number(context.emit(op(as_float(context, value))))


for _name, _op in (
    ("trunc", relax.op.trunc),
    ("sym_int", relax.op.trunc),
    ("ceil", relax.op.ceil),
    ("floor", relax.op.floor),
    ("round", relax.op.round),
):
    converts(f"{PYTHON}::{_name}")(partial(_whole, _op))


@converts(*(f"{PYTHON}::{name}" for name in ("sym_not", "and_", "or_", "sym_ite", "eq", "ne", "lt", "le", "gt", "ge")))
def decision(context: Context) -> None:
    """Only assertions should have asked, and they are dropped."""
    context.refuse("a decision that the data make is none that a graph can hold")
