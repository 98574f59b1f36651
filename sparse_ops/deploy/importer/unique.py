"""torch.unique: of coordinates through our kernel, of single numbers by sorting them."""

from typing import Any

from tvm import relax

from sparse_ops import op

from .context import Context
from .layout import cut
from .order import stable_order
from .registry import converts
from .rows import kept_rows, take
from .scatter import counts
from .sizes import known, largest, smallest


@converts("aten::unique_dim")
def unique_dim(context: Context) -> list:
    """Rows of 1 to 4 integers. Of 2 and more, each is to be from -32768 to 32767, and the first of 4 from 0 to 4095."""
    x = context["self"]
    if context["dim"] % x.ty.ndim or x.ty.ndim > 2:
        context.refuse(f"expected dim=0 of a tensor with one or two dimensions, given dim={context['dim']} of {x.ty.ndim}")
    width = known(context.dims(x)[1]) if x.ty.ndim == 2 else 1
    if width == 1:
        values, index, found = unique_values(context, context.flat(x), True)
        return [context.reshape(values, [*context.dims(values), *[1] * (x.ty.ndim - 1)]), index, found]
    if width is None or width > 4 or "int" not in str(x.ty.dtype):
        context.refuse(f"expected rows of 1 to 4 integers, given {x.ty}")
    return _unique_rows(context, x, width)


def _unique_rows(context: Context, x: relax.Expr, width: int) -> list:
    """Narrower rows as coordinates of four, with zeros in front."""
    rows, dtype = context.dims(x)[0], str(x.ty.dtype)
    narrow = context.cast(clipped(context, x), "int32")
    if width < 4:
        narrow = context.emit(relax.op.concat([context.full([rows, 4 - width], 0, "int32"), narrow], 1))
    found, index = context.emit_all(op.unique(narrow))
    found = context.named(found, [context.size("unique"), 4], "int32")
    values = found
    if width < 4:
        values = context.emit(relax.op.strided_slice(found, [1], [4 - width], [4]))
    number = context.reshape(context.cast(counts(context, index, found), "int64"), [context.dims(found)[0]])
    return [context.cast(values, dtype), context.cast(index, "int64"), number]


def clipped(context: Context, x: relax.Expr) -> relax.Expr:
    """Values of an int64 tensor that no int32 holds as the nearest that one does, which the kernel refuses."""
    if str(x.ty.dtype) != "int64":
        return x
    low, high = (relax.const(bound, "int64") for bound in (-(2**31), 2**31 - 1))
    return context.emit(relax.op.minimum(context.emit(relax.op.maximum(x, low)), high))


@converts("aten::_unique2", "aten::_unique", "aten::unique_consecutive")
def unique(context: Context) -> list:
    """Of all elements."""
    x = context["self"]
    if context.args.get("dim") is not None:
        context.refuse("expected no dim")
    ordered = "consecutive" not in context.op
    values, index, found = unique_values(context, context.flat(x), ordered)
    return [values, context.reshape(index, context.dims(x)), found]


def unique_values(context: Context, x: relax.Expr, ordered: bool) -> tuple[Any, Any, Any]:
    """(values [M], inverse int64 [N], counts int64 [M]) of a vector; `ordered`: it is to be sorted first."""
    (rows,) = context.dims(x)
    order = stable_order(context, x) if ordered else None
    ascending = x if order is None else context.flat(take(context, context.reshape(x, [rows, 1]), order))
    first = context.full([1], True, "bool")
    # Each element against the one before it: both parts are one shorter than the vector, or empty like it.
    later = cut(context, ascending, 0, smallest(1, rows), rows)
    before = cut(context, ascending, 0, 0, largest(rows - 1, 0))
    begins = context.emit(relax.op.concat([first, context.emit(relax.op.not_equal(later, before))], 0))
    begins = cut(context, begins, 0, 0, rows)
    starts = kept_rows(context, begins)
    values = context.flat(take(context, context.reshape(ascending, [rows, 1]), starts))
    ranks = context.emit(relax.op.cumsum(context.cast(begins, "int32"), 0))
    ranks = context.emit(relax.op.subtract(ranks, relax.const(1, "int32")))
    if order is not None:
        ranks = context.emit(relax.op.scatter_elements(context.full([rows], 0, "int32"), order, ranks, 0))
    like = context.reshape(starts, [*context.dims(starts), 1])
    found = context.reshape(context.cast(counts(context, ranks, like), "int64"), context.dims(starts))
    return values, context.cast(ranks, "int64"), found
