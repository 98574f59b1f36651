"""New tensors, of sizes that the data may decide."""

from functools import partial
from math import isfinite
from typing import Any

import numpy as np
from tvm import relax

from .context import Context
from .registry import converts
from .sizes import is_number


def filled(context: Context, dims: list, value: Any, dtype: str) -> relax.Expr:
    """A tensor of one value; ValueError from the running module where sizes are negative or too large."""
    dims = context.checked(dims, dtype=dtype)
    if isinstance(value, float) and not isfinite(value):  # which TVM's `full` does not take
        return context.broadcast(relax.const(value, dtype), dims)
    value = relax.const(value, dtype) if isinstance(value, bool | int | float) else context.tensor(value, dtype)
    return context.emit(relax.op.full(relax.ShapeExpr(dims), value, dtype))


def _sized(value: Any, context: Context) -> relax.Expr:
    return filled(context, context["size"], value, context.dtype)


def _like(value: Any, context: Context) -> relax.Expr:
    return filled(context, context.dims(context["self"]), value, context.dtype)


for _name, _value in (("zeros", 0), ("ones", 1), ("empty", 0)):  # of what is empty anything may be read
    converts(f"aten::{_name}", f"aten::new_{_name}")(partial(_sized, _value))
    converts(f"aten::{_name}_like")(partial(_like, _value))
converts("aten::empty_permuted", "aten::empty_strided", "aten::new_empty_strided")(partial(_sized, 0))


@converts("aten::full", "aten::new_full")
def full(context: Context) -> relax.Expr:
    return filled(context, context["size"], context["fill_value"], context.dtype)


@converts("aten::full_like")
def full_like(context: Context) -> relax.Expr:
    return filled(context, context.dims(context["self"]), context["fill_value"], context.dtype)


@converts("aten::fill.Scalar", "aten::fill.Tensor")
def fill(context: Context) -> relax.Expr:
    return filled(context, context.dims(context["self"]), context["value"], context.dtype)


@converts("aten::zero")
def zero(context: Context) -> relax.Expr:
    return filled(context, context.dims(context["self"]), 0, context.dtype)


RANDOM = (
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "bernoulli",
    "multinomial",
    "rand_like",
    "randn_like",
    "randint_like",
)


@converts(*(f"aten::{name}" for name in RANDOM))
def random(context: Context) -> None:
    context.refuse("there are no random numbers in a component")


@converts("aten::scalar_tensor")
def scalar_tensor(context: Context) -> relax.Expr:
    return context.tensor(context["s"], context.dtype)


@converts("aten::lift_fresh_copy", "aten::clone", "aten::alias", "aten::detach", "aten::contiguous", "aten::lift_fresh")
def itself(context: Context) -> relax.Expr:
    return context["self"]


@converts("aten::arange", "aten::arange.start", "aten::arange.start_step")
def arange(context: Context) -> relax.Expr:
    start, end, step = (context.args.get(name, default) for name, default in (("start", 0), ("end", None), ("step", 1)))
    numbers = (start, end, step)
    if all(isinstance(number, int | float) for number in numbers):
        return context.emit(relax.op.arange(start, end, step, dtype=context.dtype))
    if not all(map(is_number, numbers)) or not isinstance(step, int):
        context.refuse("expected integers, of which the step is known")
    length = end - start if step == 1 else (end - start + (step - (1 if step > 0 else -1))) // step
    return counted(context, length, start, step, context.dtype)


def counted(context: Context, length: Any, start: Any = 0, step: int = 1, dtype: str = "int32") -> relax.Expr:
    """start, start + step, ... of that length."""
    (length,) = context.checked([length], dtype=dtype)
    whole = "int64" if "float" in dtype else dtype
    numbers = context.emit(relax.op.arange(0, length, 1, dtype=whole))
    if step != 1:
        numbers = context.emit(relax.op.multiply(numbers, relax.const(step, whole)))
    if not isinstance(start, int) or start:
        numbers = context.emit(relax.op.add(numbers, context.tensor(start, whole)))
    return context.cast(numbers, dtype)


@converts("aten::linspace")
def linspace(context: Context) -> relax.Expr:
    start, end, steps = (context[name] for name in ("start", "end", "steps"))
    if not all(isinstance(number, int | float) for number in (start, end, steps)):
        context.refuse("expected numbers that are known")
    values = [start + (end - start) * i / max(steps - 1, 1) for i in range(steps)]
    return relax.const(np.asarray(values), context.dtype)
