"""Parts of a tensor assigned: behind an index, under a mask, along a slice. A copy is made with the part in its place."""

from collections.abc import Sequence
from typing import Any

from tvm import relax

from .context import Context
from .create import counted
from .layout import clamped, cut
from .registry import converts
from .rows import Selection, inverse, row_numbers, take, to_front
from .scatter import checked, elements, row_wise, sum_rows
from .sizes import count, known, same


def last_source(context: Context, index: relax.Expr, rows: Any) -> relax.Expr:
    """int32 [rows]: the last row that a checked index int32 [K] sends there, or -1."""
    sources = context.dims(index)[0]
    nowhere = context.full([rows], -1, "int32")
    index = checked(context, index, rows)
    return context.emit(relax.op.scatter_elements(nowhere, index, counted(context, sources), 0, "update"))


def put_rows(context: Context, x: relax.Expr, index: relax.Expr, values: relax.Expr) -> relax.Expr:
    """x [N, ...] with row values[k] at index[k], the last where several are sent to one. index int32 [K], checked."""
    rows = context.dims(x)[0]
    source = last_source(context, index, rows)
    new = take(context, values, source)
    given = context.emit(relax.op.greater_equal(source, relax.const(0, "int32")))
    given = context.reshape(given, [rows, *[1] * (x.ty.ndim - 1)])
    return context.emit(relax.op.where(given, new, x))


@converts("aten::index_put", "aten::_unsafe_index_put", "aten::_index_put_impl")
def index_put(context: Context) -> relax.Expr:
    x = context["self"]
    values = context.cast(context["values"], context.dtype)
    masked = _under_mask(context, x, values)
    if masked is not None:
        return masked
    chosen = Selection(context, x, context["indices"])
    order = chosen.result_order
    shape = [*chosen.shape, *chosen.rest]
    values = context.broadcast(values, [shape[axis] for axis in order])
    values = context.permute(values, inverse(order))
    values = context.reshape(values, [count(chosen.shape), *chosen.rest])
    matrix = chosen.matrix(context, x)
    if context["accumulate"]:
        put = context.emit(relax.op.add(matrix, sum_rows(context, values, chosen.rows, matrix)))
    else:
        put = put_rows(context, matrix, chosen.rows, values)
    put = put if len(chosen.dims) == 1 else context.reshape(put, [*chosen.dims, *chosen.rest])
    return context.permute(put, inverse(chosen.order))


def _under_mask(context: Context, x: relax.Expr, values: relax.Expr) -> relax.Expr | None:
    """x[mask] = value, where the value does not depend on the row; else None."""
    indices = context["indices"]
    if len(indices) != 1 or indices[0] is None or str(indices[0].ty.dtype) != "bool" or context["accumulate"]:
        return None
    mask, dims = indices[0], context.dims(values)
    rest = x.ty.ndim - mask.ty.ndim
    if values.ty.ndim > rest and known(dims[0]) != 1:
        return None
    if values.ty.ndim > rest:
        values = context.reshape(values, dims[1:])
    mask = context.reshape(mask, [*context.dims(mask), *[1] * rest])
    return context.emit(relax.op.where(mask, values, x))


@converts("aten::index_copy")
def index_copy(context: Context) -> relax.Expr:
    x = context["self"]
    order = to_front(context["dim"], x.ty.ndim)
    x, source = (context.permute(tensor, order) for tensor in (x, context["source"]))
    index = row_numbers(context, context.flat(context["index"]), context.dims(x)[0], negative=False)
    return context.permute(put_rows(context, x, index, source), inverse(order))


@converts("aten::index_fill.int_Scalar")
def index_fill(context: Context) -> relax.Expr:
    x = context["self"]
    order = to_front(context["dim"], x.ty.ndim)
    x = context.permute(x, order)
    index = row_numbers(context, context.flat(context["index"]), context.dims(x)[0])
    values = context.full([*context.dims(index), *context.dims(x)[1:]], context["value"], context.dtype)
    return context.permute(put_rows(context, x, index, values), inverse(order))


@converts("aten::scatter.src", "aten::scatter.value")
def scatter(context: Context) -> relax.Expr:
    x = context["self"]
    source = context.args.get("src", context.args.get("value"))
    if not isinstance(source, relax.Expr) or source.ty.ndim == 0:
        source = context.broadcast(context.tensor(source, context.dtype), context.dims(context["index"]))
    spread = row_wise(context, x, source)
    if spread is not None:
        rows, index, values, back = spread
        return back(put_rows(context, rows, index, values))
    flat, index, values = elements(context, x, source)
    return context.reshape(put_rows(context, flat, index, values), context.dims(x))


@converts("aten::slice_scatter")
def slice_scatter(context: Context) -> relax.Expr:
    x, axis = context["self"], context["dim"] % context["self"].ty.ndim
    size = context.dims(x)[axis]
    begin, end = clamped(context["start"], context["end"], size)
    source = context.cast(context["src"], context.dtype)
    if context["step"] == 1:
        return replaced(context, x, source, axis, begin, end)
    length = context.dims(source)[axis]
    numbers = counted(context, length, begin, context["step"])
    order = to_front(axis, x.ty.ndim)
    put = put_rows(context, context.permute(x, order), numbers, context.permute(source, order))
    return context.permute(put, inverse(order))


@converts("aten::select_scatter")
def select_scatter(context: Context) -> relax.Expr:
    x, axis = context["self"], context["dim"] % context["self"].ty.ndim
    size, place = context.dims(x)[axis], context["index"]
    if isinstance(place, int) and place < 0:
        place = size + place
    dims = context.dims(x)
    source = context.reshape(context.cast(context["src"], context.dtype), [*dims[:axis], 1, *dims[axis + 1 :]])
    if known(size) is not None and isinstance(place, int):
        return replaced(context, x, source, axis, place, place + 1)
    index = row_numbers(context, context.reshape(context.tensor(place, "int64"), [1]), size)
    order = to_front(axis, x.ty.ndim)
    put = put_rows(context, context.permute(x, order), index, context.permute(source, order))
    return context.permute(put, inverse(order))


def replaced(context: Context, x: relax.Expr, source: relax.Expr, axis: int, begin: Any, end: Any) -> relax.Expr:
    """x with `source` from `begin` to `end` along an axis."""
    dims = context.dims(x)
    size = dims[axis]
    parts = [source]
    if known(begin) != 0:
        parts.insert(0, cut(context, x, axis, 0, begin))
    if not same(end, size):
        parts.append(cut(context, x, axis, end, size))
    return context.emit(relax.op.concat(parts, axis)) if len(parts) > 1 else context.broadcast(source, dims)


@converts("aten::copy")
def copy(context: Context) -> relax.Expr:
    dims: Sequence = context.dims(context["self"])
    return context.broadcast(context.cast(context["src"], context.dtype), dims)
