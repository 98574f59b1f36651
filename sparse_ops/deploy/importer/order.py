"""Sorting, and sums along rows."""

from tvm import relax

from .context import Context
from .create import counted
from .layout import cut
from .registry import converts
from .rows import inverse, select_rows, take, to_front
from .sizes import known


def stable_order(context: Context, x: relax.Expr, descending: bool = False) -> relax.Expr:
    """int32 [N]: the order in which a vector ascends; equal elements stay as they are."""
    x = context.cast(x, "int32") if str(x.ty.dtype) == "bool" else x
    return context.emit(relax.op.argsort(x, 0, descending, "int32"))


def _sorted(context: Context, x: relax.Expr, axis: int, descending: bool) -> tuple[relax.Expr, relax.Expr]:
    """(values, order int32) along an axis."""
    if x.ty.ndim == 0:
        return x, context.full([], 0, "int32")
    if x.ty.ndim == 1:
        order = stable_order(context, x, descending)
        rows = context.dims(x)[0]
        return context.flat(take(context, context.reshape(x, [rows, 1]), order)), order
    order = context.emit(relax.op.argsort(x, axis, descending, "int32"))
    return context.emit(relax.op.gather_elements(x, order, axis)), order


@converts("aten::sort", "aten::sort.stable")
def sort(context: Context) -> list[relax.Expr]:
    x = context["self"]
    values, order = _sorted(context, x, context["dim"] % max(x.ty.ndim, 1), context["descending"])
    return [values, context.cast(order, "int64")]


@converts("aten::argsort", "aten::argsort.stable")
def argsort(context: Context) -> relax.Expr:
    x = context["self"]
    return _sorted(context, x, context["dim"] % max(x.ty.ndim, 1), context["descending"])[1]


@converts("aten::topk")
def topk(context: Context) -> list[relax.Expr]:
    """ValueError from the running module for more than there are."""
    x, wanted = context["self"], context["k"]
    axis = context["dim"] % max(x.ty.ndim, 1)
    size = context.dims(x)[axis]
    if known(size) is None or known(wanted) is None:
        context.checked([size - wanted], what=f"{context.op}: elements beside the k that are wanted")
    values, order = _sorted(context, x, axis, context["largest"])
    return [cut(context, values, axis, 0, wanted), context.cast(cut(context, order, axis, 0, wanted), "int64")]


@converts("aten::cumsum")
def cumsum(context: Context) -> relax.Expr:
    x = context["self"]
    if x.ty.ndim == 0:
        return context.cast(x, context.dtype)
    return context.emit(relax.op.cumsum(context.cast(x, context.dtype), context["dim"] % x.ty.ndim))


@converts("aten::repeat_interleave.Tensor")
def repeat_interleave(context: Context) -> relax.Expr:
    """Row i repeats[i] times: between which ends each place lies."""
    ends = context.emit(relax.op.cumsum(context.cast(context["repeats"], "int32"), 0))
    total = context["output_size"]
    if total is None:
        (total,) = context.checked([context.number(context.emit(relax.op.sum(context.cast(context["repeats"], "int64"))))])
    places = counted(context, total)
    return context.emit(relax.op.bucketize(places, ends, out_int32=True, right=True))


@converts("aten::flip")
def flip(context: Context) -> relax.Expr:
    """Rows through their numbers, as TVM's flip asks for sizes that are known."""
    x = context["self"]
    for axis in {axis % x.ty.ndim for axis in context["dims"]}:
        size = context.dims(x)[axis]
        if known(size) is not None:
            x = context.emit(relax.op.flip(x, axis))
            continue
        order = to_front(axis, x.ty.ndim)
        last = context.emit(relax.op.subtract(context.tensor(size, "int32"), relax.const(1, "int32")))
        backwards = context.emit(relax.op.subtract(last, counted(context, size)))
        x = context.permute(select_rows(context, context.permute(x, order), backwards), inverse(order))
    return x
