"""Reductions, whose TVM counterparts differ in dtype, over nothing, or at sizes that the data decide."""

from collections.abc import Callable
from functools import partial

from tvm import relax

from .arithmetic import truth
from .context import Context
from .registry import converts
from .sizes import count, known


def axes_of(context: Context) -> list[int]:
    """Those that are reduced."""
    rank, given = context["self"].ty.ndim, context.args.get("dim")
    if given is None or given == []:
        return list(range(rank))
    return [axis % max(rank, 1) for axis in ([given] if isinstance(given, int) else given)] if rank else []


def keeps(context: Context) -> bool:
    return bool(context.args.get("keepdim", False))


def _total(op: Callable[..., relax.Expr], context: Context) -> relax.Expr:
    """In the dtype of the result, which is wider than that of integers."""
    return context.emit(op(context.cast(context["self"], context.dtype), axes_of(context), keeps(context)))


for _name, _op in (("sum", relax.op.sum), ("prod", relax.op.prod), ("mean", relax.op.mean)):
    _overloads = {"sum": ("default", "dim_IntList"), "prod": ("default", "dim_int"), "mean": ("default", "dim")}[_name]
    converts(*(f"aten::{_name}.{_overload}" for _overload in _overloads))(partial(_total, _op))


def _number_of(context: Context, wanted: bool) -> relax.Expr:
    """Whether any element is as wanted."""
    x = truth(context, context["self"])
    if not wanted:
        x = context.emit(relax.op.logical_not(x))
    found = context.emit(relax.op.sum(context.cast(x, "int32"), axes_of(context), keeps(context)))
    return context.emit(relax.op.greater(found, relax.const(0, "int32")))


@converts("aten::any", "aten::any.dim", "aten::any.dims")
def any_(context: Context) -> relax.Expr:
    return _number_of(context, True)


@converts("aten::all", "aten::all.dim", "aten::all.dims")
def all_(context: Context) -> relax.Expr:
    return context.emit(relax.op.logical_not(_number_of(context, False)))


def something(context: Context) -> None:
    """ValueError from the running module where the largest or least of nothing is asked for."""
    sizes = _reduced_sizes(context)
    if any(known(size) is None for size in sizes):
        # A size of rows is none that `checked` doubts: 0 rows are legal elsewhere.
        context.checked([count(sizes) - 1], what=f"{context.op}: rows beside the one that it takes at least")


def _reduced_sizes(context: Context) -> list:
    return [context.dims(context["self"])[axis] for axis in axes_of(context)]


def _found(context: Context, found: relax.Expr) -> relax.Expr:
    """The largest or least of integers, 0 where there are none: torch refuses these, but a grid whose size the data decide may
    have no voxels. Of floats, nothing has no largest here either."""
    sizes = _reduced_sizes(context)
    if "int" not in str(context["self"].ty.dtype):
        something(context)
    elif any(known(size) is None for size in sizes):
        any_there = context.emit(relax.op.greater(context.tensor(count(sizes), "int64"), relax.const(0, "int64")))
        return context.emit(relax.op.where(any_there, found, relax.const(0, str(found.ty.dtype))))
    return found


def _extreme(op: Callable[..., relax.Expr], context: Context) -> relax.Expr:
    x = context["self"]
    narrow = context.cast(x, "int8") if str(x.ty.dtype) == "bool" else x
    return context.cast(_found(context, context.emit(op(narrow, axes_of(context), keeps(context)))), context.dtype)


def _extreme_and_place(op: Callable[..., relax.Expr], place: Callable[..., relax.Expr], context: Context) -> list[relax.Expr]:
    x, (axis,) = context["self"], axes_of(context)
    return [_found(context, context.emit(made(x, axis, keeps(context)))) for made in (op, place)]


def _place(op: Callable[..., relax.Expr], context: Context) -> relax.Expr:
    something(context)
    x, axis = context["self"], context.args.get("dim")
    if axis is None:
        return context.emit(op(context.flat(x), 0, False))
    return context.emit(op(x, axis % x.ty.ndim, keeps(context)))


for _name, _op, _where in (("max", relax.op.max, relax.op.argmax), ("min", relax.op.min, relax.op.argmin)):
    converts(f"aten::{_name}.default", f"aten::a{_name}")(partial(_extreme, _op))
    converts(f"aten::{_name}.dim")(partial(_extreme_and_place, _op, _where))
    converts(f"aten::arg{_name}")(partial(_place, _where))


@converts("aten::var.correction", "aten::std.correction")
def variance(context: Context) -> relax.Expr:
    x, axes = context["self"], axes_of(context)
    correction = context["correction"]
    correction = 1 if correction is None else correction
    found = context.emit(relax.op.variance(x, axes, keeps(context)))
    if correction:
        number = context.tensor(count([context.dims(x)[axis] for axis in axes]), context.dtype)
        less = context.emit(
            relax.op.maximum(
                context.emit(relax.op.subtract(number, relax.const(correction, context.dtype))), relax.const(0, context.dtype)
            )
        )
        found = context.emit(relax.op.divide(context.emit(relax.op.multiply(found, number)), less))
    return found if "var" in context.op else context.emit(relax.op.sqrt(found))
