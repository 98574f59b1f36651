"""Rows summed, averaged or compared by an index, through our `segment_pool`: the same bits on every run, and checked."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import relax

from sparse_ops import op
from sparse_ops.op.signature import FLOATS

from .context import Context
from .create import counted
from .registry import converts
from .rows import element_numbers, inverse, row_numbers, spread_index, to_front
from .sizes import count, known, same

MODES = {"sum": "sum", "add": "sum", "mean": "mean", "amax": "max", "amin": "max"}


def pooled(context: Context, x: relax.Expr, index: relax.Expr, like: relax.Expr, mode: str) -> relax.Expr:
    """[M, ...]: the rows of x [K, ...] that a checked index int32 [K] sends to each row of `like` [M, ...], 0 where none is."""
    dims = context.dims(x)
    rows, channels = dims[0], count(dims[1:])
    if known(channels) is None:
        context.refuse("expected sizes behind the rows that are known when the model is exported")
    out = context.emit(op.segment_pool(context.reshape(x, [rows, channels]), index, like, mode))
    return context.reshape(out, [context.dims(like)[0], *dims[1:]])


def checked(context: Context, index: relax.Expr, rows: Any) -> relax.Expr:
    """The index itself; ValueError from the running module for an entry that is no row."""
    numbers = context.reshape(counted(context, rows), [rows, 1])
    return context.flat(context.emit(op.gather_rows(numbers, index)))


def sum_rows(context: Context, x: relax.Expr, index: relax.Expr, like: relax.Expr) -> relax.Expr:
    """`pooled` sums of any dtype."""
    if str(x.ty.dtype) in FLOATS:
        return pooled(context, x, index, like, "sum")
    return elementwise(
        context, context.full([context.dims(like)[0], *context.dims(x)[1:]], 0, str(x.ty.dtype)), x, index, "add"
    )


def elementwise(context: Context, start: relax.Expr, x: relax.Expr, index: relax.Expr, how: str) -> relax.Expr:
    """What our kernel, which is for floats, does not: `start` [M, ...] with rows of integers x [K, ...] combined into it."""
    dims = context.dims(x)
    index = checked(context, index, context.dims(start)[0])
    spread = context.broadcast(context.reshape(index, [dims[0], *[1] * (len(dims) - 1)]), dims)
    return context.emit(relax.op.scatter_elements(start, spread, x, 0, how))


def counts(context: Context, index: relax.Expr, like: relax.Expr) -> relax.Expr:
    """float32 [M, 1]: how many rows the index sends to each row of `like`."""
    ones = context.full([context.dims(index)[0], 1], 1.0, "float32")
    return context.emit(op.segment_pool(ones, index, like, "sum"))


def reduce_rows(
    context: Context, x: relax.Expr, index: relax.Expr, values: relax.Expr, reduce: str, include_self: bool
) -> relax.Expr:
    """x [M, ...] with what an index int32 [K] sends there of values [K, ...]; rows that nothing goes to stay as they are."""
    if reduce not in MODES:
        context.refuse(f"expected one of {', '.join(MODES)}, given {reduce!r}")
    dtype = str(x.ty.dtype)
    if dtype not in FLOATS:
        return _reduce_integers(context, x, index, values, reduce, include_self)
    if reduce in ("sum", "add") and include_self:
        return context.emit(relax.op.add(x, pooled(context, values, index, x, "sum")))
    found = context.reshape(counts(context, index, x), [context.dims(x)[0], *[1] * (x.ty.ndim - 1)])
    touched = context.emit(relax.op.greater(found, relax.const(0, "float32")))
    sign = -1 if reduce == "amin" else 1
    mode = "sum" if reduce == "mean" and include_self else MODES[reduce]
    values = values if sign > 0 else context.emit(relax.op.negative(values))
    out = pooled(context, values, index, x, mode)
    out = out if sign > 0 else context.emit(relax.op.negative(out))
    if include_self and reduce == "mean":
        members = context.cast(context.emit(relax.op.add(found, relax.const(1, "float32"))), dtype)
        out = context.emit(relax.op.divide(context.emit(relax.op.add(x, out)), members))
    elif include_self:
        out = context.emit((relax.op.maximum if sign > 0 else relax.op.minimum)(x, out))
    return context.emit(relax.op.where(touched, out, x))


def _reduce_integers(
    context: Context, x: relax.Expr, index: relax.Expr, values: relax.Expr, reduce: str, include_self: bool
) -> relax.Expr:
    how = {"sum": "add", "add": "add", "amax": "max", "amin": "min"}.get(reduce)
    if how is None:
        context.refuse(f"expected sum, amax or amin of integers, given {reduce!r}")
    if include_self:
        return elementwise(context, x, values, index, how)
    bits = int(str(x.ty.dtype).removeprefix("int"))
    start = {"add": 0, "max": -(2 ** (bits - 1)), "min": 2 ** (bits - 1) - 1}[how]
    out = elementwise(context, context.full(context.dims(x), start, str(x.ty.dtype)), values, index, how)
    found = context.reshape(counts(context, index, x), [context.dims(x)[0], *[1] * (x.ty.ndim - 1)])
    return context.emit(relax.op.where(context.emit(relax.op.greater(found, relax.const(0, "float32"))), out, x))


@converts("aten::index_add")
def index_add(context: Context) -> relax.Expr:
    source = context["source"]
    if context["alpha"] != 1:
        source = context.emit(relax.op.multiply(source, context.tensor(context["alpha"], context.dtype)))
    return _by_index(context, source, "sum", True)


@converts("aten::index_reduce")
def index_reduce(context: Context) -> relax.Expr:
    return _by_index(context, context["source"], context["reduce"], context["include_self"])


def _by_index(context: Context, source: relax.Expr, reduce: str, include_self: bool) -> relax.Expr:
    x = context["self"]
    order = to_front(context["dim"], x.ty.ndim)
    x, source = (context.permute(tensor, order) for tensor in (x, source))
    index = row_numbers(context, context.flat(context["index"]), context.dims(x)[0], negative=False)
    return context.permute(_matrices(context, x, index, source, reduce, include_self), inverse(order))


def _matrices(context: Context, x, index, source, reduce: str, include_self: bool) -> relax.Expr:
    """`reduce_rows`, also of what has one dimension."""
    if x.ty.ndim > 1:
        return reduce_rows(context, x, index, source, reduce, include_self)
    columns = (context.reshape(tensor, [*context.dims(tensor), 1]) for tensor in (x, source))
    wide = next(columns)
    return context.reshape(reduce_rows(context, wide, index, next(columns), reduce, include_self), context.dims(x))


@converts("aten::scatter_add")
def scatter_add(context: Context) -> relax.Expr:
    return _scattered(context, "sum", True)


@converts("aten::scatter_reduce.two")
def scatter_reduce(context: Context) -> relax.Expr:
    return _scattered(context, context["reduce"], context["include_self"])


def _scattered(context: Context, reduce: str, include_self: bool) -> relax.Expr:
    x, source = context["self"], context["src"]
    spread = row_wise(context, x, source)
    if spread is not None:
        rows, index, values, back = spread
        return back(_matrices(context, rows, index, values, reduce, include_self))
    flat, index, values = elements(context, x, source)
    return context.reshape(reduce_rows(context, flat, index, values, reduce, include_self), context.dims(x))


def row_wise(
    context: Context, x: relax.Expr, source: relax.Expr
) -> tuple[relax.Expr, relax.Expr, relax.Expr, Callable[[relax.Expr], relax.Expr]] | None:
    """(x, index int32 [K], source) with the rows in front, and what turns a result back, where the index is one of whole rows;
    else None."""
    axis = context["dim"] % max(x.ty.ndim, 1)
    narrow = spread_index(context, "index", axis)
    pairs = list(zip(context.dims(x), context.dims(context["index"]), context.dims(source), strict=True))
    whole = all(same(a, b) and same(b, c) for place, (a, b, c) in enumerate(pairs) if place != axis)
    if narrow is None or not whole or not same(*pairs[axis][1:]):
        return None
    order = to_front(axis, x.ty.ndim)
    index = row_numbers(context, narrow, pairs[axis][0], negative=False)
    back = partial(context.permute, axes=inverse(order))
    return context.permute(x, order), index, context.permute(source, order), back


def elements(context: Context, x: relax.Expr, source: relax.Expr) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """(x [N, 1], index int32 [K], source [K, 1]): every element a row."""
    shape = context.dims(context["index"])
    if not all(same(one, other) for one, other in zip(shape, context.dims(source), strict=True)):
        source = context.emit(relax.op.strided_slice(source, list(range(len(shape))), [0] * len(shape), list(shape)))
    index = element_numbers(context, context.dims(x), context["index"], context["dim"] % max(x.ty.ndim, 1))
    return context.reshape(x, [count(context.dims(x)), 1]), index, context.reshape(source, [count(shape), 1])


@converts("aten::bincount")
def bincount(context: Context) -> relax.Expr:
    x, weights, least = context["self"], context["weights"], context["minlength"]
    largest = context.emit(relax.op.max(context.cast(x, "int64")))  # of nothing, the least int64
    length = context.emit(
        relax.op.maximum(context.emit(relax.op.add(largest, relax.const(1, "int64"))), relax.const(least, "int64"))
    )
    (bins,) = context.checked([context.number(length, "bins")], dtype="int64")
    like = context.full([bins, 1], 0, "int32")
    index = row_numbers(context, x, bins, negative=False)
    if weights is None:
        return context.reshape(context.cast(counts(context, index, like), "int64"), [bins])
    values = context.reshape(context.cast(weights, "float32"), [*context.dims(weights), 1])
    return context.reshape(context.cast(pooled(context, values, index, like, "sum"), context.dtype), [bins])
