"""What an index or a mask selects, through our checked `gather_rows`: TVM's `take` reads out of bounds.

Negative entries count from the end, as in torch; others that are out of range are a ValueError from the running module.
"""

from collections.abc import Sequence
from typing import Any

from tvm import relax

from sparse_ops import op
from sparse_ops.op.gather_rows import DTYPES

from .arithmetic import truth
from .context import Context
from .create import counted
from .registry import converts
from .sizes import count, known, same

INT32 = 2**31 - 1


def row_numbers(context: Context, index: relax.Expr, rows: Any, negative: bool = True) -> relax.Expr:
    """An integer tensor of any rank as int32 numbers of rows; one that is out of range stays so, and is never -1.

    `negative`: entries below 0 count from the end.
    """
    dtype = str(index.ty.dtype)
    if dtype == "int64":
        low, high = (relax.const(bound, dtype) for bound in (-INT32 - 1, INT32))
        index = context.emit(relax.op.minimum(context.emit(relax.op.maximum(index, low)), high))
    index = context.cast(index, "int32")
    beyond = context.emit(relax.op.minimum(index, relax.const(-2, "int32")))
    least = relax.const(0, "int32")
    if negative:
        wrapped = context.emit(relax.op.add(index, context.tensor(rows, "int32")))
        least = context.tensor(0 - rows, "int32")
    else:
        wrapped = index
    below = context.emit(relax.op.less(index, least))
    counted_back = context.emit(relax.op.where(below, beyond, wrapped))
    return context.emit(relax.op.where(context.emit(relax.op.less(index, relax.const(0, "int32"))), counted_back, index))


def take(context: Context, x: relax.Expr, index: relax.Expr) -> relax.Expr:
    """x[index], with zeros where the index is -1. x [N, ...] of any dtype; index int32 [M], checked."""
    dtype = str(x.ty.dtype)
    if dtype not in DTYPES:
        between = "int32" if dtype in ("int8", "uint8", "int16", "uint16") else None
        if between is None:
            context.refuse(f"expected {', '.join(DTYPES)} or smaller integers to select from, given {dtype}")
        return context.cast(take(context, context.cast(x, between), index), dtype)
    rows, *rest = context.dims(x)
    channels, picked = count(rest), context.dims(index)[0]
    if known(channels) is None:  # a kernel is made for a number of channels: one element at a time
        row = context.reshape(context.emit(relax.op.multiply(index, context.tensor(channels, "int32"))), [picked, 1])
        column = context.reshape(counted(context, channels), [1, channels])
        absent = context.emit(relax.op.less(context.reshape(index, [picked, 1]), relax.const(0, "int32")))
        flat = context.emit(
            relax.op.where(absent, context.reshape(index, [picked, 1]), context.emit(relax.op.add(row, column)))
        )
        elements = context.emit(op.gather_rows(context.reshape(x, [rows * channels, 1]), context.flat(flat)))
        return context.reshape(elements, [picked, *rest])
    matrix = x if len(rest) == 1 else context.reshape(x, [rows, channels])
    found = context.emit(op.gather_rows(matrix, index))
    return found if len(rest) == 1 else context.reshape(found, [picked, *rest])


def select_rows(context: Context, x: relax.Expr, index: relax.Expr, negative: bool = True) -> relax.Expr:
    """x[index] for an index of any rank."""
    dims = context.dims(index)
    flat = context.flat(row_numbers(context, index, context.dims(x)[0], negative))
    found = take(context, x, flat)
    return found if len(dims) == 1 else context.reshape(found, [*dims, *context.dims(x)[1:]])


def kept_rows(context: Context, mask: relax.Expr) -> relax.Expr:
    """int32 [M]: which elements of a flat mask are not 0; M is a fresh dimension."""
    found = context.once.get(mask)
    if found is None:
        rows = context.emit(op.flatnonzero(truth(context, mask)))
        found = context.once[mask] = context.named(rows, [context.size("kept")], "int32")
    return found


def unravelled(context: Context, flat: relax.Expr, dims: Sequence) -> list[relax.Expr]:
    """Numbers of elements as their indices along each axis."""
    if len(dims) == 1:
        return [flat]
    found = []
    for size in reversed(dims[1:]):
        divisor = context.tensor(size, "int32")
        found.append(context.emit(relax.op.floor_mod(flat, divisor)))
        flat = context.emit(relax.op.floor_divide(flat, divisor))
    return [flat, *reversed(found)]


def as_indices(context: Context, x: relax.Expr, indices: Sequence) -> list[relax.Expr | None]:
    """One int32 tensor or None an axis of x: masks taken apart, entries counted from the start, unchecked."""
    found: list[relax.Expr | None] = []
    dims = context.dims(x)
    for index in indices:
        if index is None:
            found.append(None)
        elif str(index.ty.dtype) in ("bool", "uint8"):
            shape = context.dims(index)
            found += unravelled(context, kept_rows(context, context.flat(index)), shape)
        else:
            found.append(row_numbers(context, index, dims[len(found)]))
    return found + [None] * (len(dims) - len(found))


class Selection:
    """What indices select of a tensor: rows of a matrix whose first axes are those that have an index.

    `rows` int32 [K]: checked when rows are taken; `shape`: of the indices together; `order`: of the axes of x, indexed first.
    """

    def __init__(self, context: Context, x: relax.Expr, indices: Sequence):
        dims, found = context.dims(x), as_indices(context, x, indices)
        self.axes = [axis for axis, index in enumerate(found) if index is not None]
        self.others = [axis for axis, index in enumerate(found) if index is None]
        self.order = self.axes + self.others
        self.dims = [dims[axis] for axis in self.axes]
        self.rest = [dims[axis] for axis in self.others]
        taken = [index for index in found if index is not None]
        self.shape = broadcast_dims([context.dims(index) for index in taken])
        # The indexed axes stand where the first of them stood if they are neighbours, else in front.
        together = self.axes == list(range(self.axes[0], self.axes[-1] + 1))
        self.place = self.axes[0] if together else 0
        flat, outside = None, None
        for index, size in zip(taken, self.dims, strict=True):
            if len(taken) > 1:
                beyond = context.emit(relax.op.greater_equal(index, context.tensor(size, "int32")))
                below = context.emit(relax.op.less(index, relax.const(0, "int32")))
                wrong = context.emit(relax.op.logical_or(beyond, below))
                outside = wrong if outside is None else context.emit(relax.op.logical_or(outside, wrong))
            if flat is not None:
                index = context.emit(relax.op.add(context.emit(relax.op.multiply(flat, context.tensor(size, "int32"))), index))
            flat = index
        if outside is not None:
            flat = context.emit(relax.op.where(outside, relax.const(-2, "int32"), flat))
        self.rows = context.flat(context.broadcast(flat, self.shape))

    @property
    def result_order(self) -> list[int]:
        """Axes of (indices, rest) in the order in which torch has them."""
        indexed, rest = list(range(len(self.shape))), list(range(len(self.shape), len(self.shape) + len(self.rest)))
        return rest[: self.place] + indexed + rest[self.place :]

    def matrix(self, context: Context, x: relax.Expr) -> relax.Expr:
        """x with the indexed axes as rows [prod, ...]."""
        x = context.permute(x, self.order)
        return x if len(self.dims) == 1 else context.reshape(x, [count(self.dims), *self.rest])


def broadcast_dims(shapes: list[list]) -> list:
    """What shapes are together; sizes that cannot be compared are equal."""
    rank = max(map(len, shapes))
    padded = [[1] * (rank - len(shape)) + shape for shape in shapes]
    return [next((size for size in sizes if known(size) != 1), 1) for sizes in zip(*padded, strict=True)]


@converts("aten::index.Tensor", "aten::_unsafe_index.Tensor")
def index(context: Context) -> relax.Expr:
    x = context["self"]
    chosen = Selection(context, x, context["indices"])
    found = take(context, chosen.matrix(context, x), chosen.rows)
    if len(chosen.shape) != 1:
        found = context.reshape(found, [*chosen.shape, *chosen.rest])
    return context.permute(found, chosen.result_order)


@converts("aten::index_select")
def index_select(context: Context) -> relax.Expr:
    x, chosen = context["self"], context["index"]
    order = to_front(context["dim"], x.ty.ndim)
    found = select_rows(context, context.permute(x, order), context.flat(chosen), negative=False)
    return context.permute(found, inverse(order))


@converts("aten::embedding")
def embedding(context: Context) -> relax.Expr:
    return select_rows(context, context["weight"], context["indices"], negative=False)


@converts("aten::select.int")
def select(context: Context) -> relax.Expr:
    x, place = context["self"], context["index"]
    axis = context["dim"] % x.ty.ndim
    size = context.dims(x)[axis]
    if known(size) is not None and isinstance(place, int):
        place = place % size if -size <= place < size else context.refuse(f"expected an index of {size}, given {place}")
        return context.emit(relax.op.take(x, relax.const(place, "int64"), axis))
    order = to_front(axis, x.ty.ndim)
    chosen = context.reshape(context.tensor(place, "int64"), [1])
    found = select_rows(context, context.permute(x, order), chosen)
    return context.reshape(found, context.dims(found)[1:])


@converts("aten::gather")
def gather(context: Context) -> relax.Expr:
    """x[..., index[...], ...]: rows, where the index is one of rows spread over the others, else elements."""
    x, chosen = context["self"], context["index"]
    axis = context["dim"] % max(x.ty.ndim, 1)
    narrow = spread_index(context, "index", axis)
    if narrow is not None and all(
        same(a, b) for i, (a, b) in enumerate(zip(context.dims(x), context.dims(chosen), strict=True)) if i != axis
    ):
        order = to_front(axis, x.ty.ndim)
        return context.permute(select_rows(context, context.permute(x, order), narrow, negative=False), inverse(order))
    flat = element_numbers(context, context.dims(x), chosen, axis)
    elements = take(context, context.reshape(x, [count(context.dims(x)), 1]), flat)
    return context.reshape(elements, context.dims(chosen))


def element_numbers(context: Context, dims: Sequence, chosen: relax.Expr, axis: int) -> relax.Expr:
    """int32 [K]: which elements of a flattened tensor of `dims` an index along `axis` means, -2 where there is none."""
    shape = context.dims(chosen)
    chosen = row_numbers(context, chosen, dims[axis], negative=False)
    beyond = context.emit(relax.op.greater_equal(chosen, context.tensor(dims[axis], "int32")))
    below = context.emit(relax.op.less(chosen, relax.const(0, "int32")))
    flat = None
    for place, size in enumerate(shape):
        if place == axis:
            along = chosen
        else:
            along = context.reshape(counted(context, size), [1] * place + [size] + [1] * (len(shape) - place - 1))
        along = context.emit(relax.op.multiply(along, context.tensor(count(dims[place + 1 :]), "int32")))
        flat = along if flat is None else context.emit(relax.op.add(flat, along))
    outside = context.emit(relax.op.logical_or(beyond, below))
    return context.flat(context.emit(relax.op.where(outside, relax.const(-2, "int32"), flat)))


def spread_index(context: Context, name: str, axis: int) -> relax.Expr | None:
    """[N]: an index along `axis` that was spread over all other axes, as `index[:, None].expand(-1, channels)`; else None."""
    node, expanded = context.nodes[name], ("aten::expand", "aten::expand_copy", "aten::repeat")
    shape = context.dims(context[name])
    while getattr(node, "target", None) is not None and context.name_of(node) in expanded:
        node = node.args[0]
    narrow = context.value_of(node)
    if len(shape) == 1:
        return narrow
    if node is context.nodes[name] or narrow.ty.ndim > len(shape):
        return None
    dims = [1] * (len(shape) - narrow.ty.ndim) + context.dims(narrow)
    plain = all(known(size) == 1 for place, size in enumerate(dims) if place != axis)
    return context.reshape(narrow, [shape[axis]]) if plain and same(dims[axis], shape[axis]) else None


def to_front(axis: int, rank: int) -> list[int]:
    """The order of axes with one of them first."""
    axis %= rank
    return [axis, *(other for other in range(rank) if other != axis)]


def inverse(order: Sequence[int]) -> list[int]:
    return [list(order).index(place) for place in range(len(order))]


@converts("aten::nonzero")
def nonzero(context: Context) -> relax.Expr:
    mask = context["self"]
    dims = context.dims(mask)
    found = unravelled(context, kept_rows(context, context.flat(mask)), dims)
    return context.cast(context.emit(relax.op.stack(found, 1)), "int64")


@converts("aten::masked_select")
def masked_select(context: Context) -> relax.Expr:
    x, mask = context["self"], context["mask"]
    dims = broadcast_dims([context.dims(x), context.dims(mask)])
    flat = [context.flat(context.broadcast(tensor, dims)) for tensor in (x, mask)]
    elements = take(context, context.reshape(flat[0], [count(dims), 1]), kept_rows(context, flat[1]))
    return context.flat(elements)
