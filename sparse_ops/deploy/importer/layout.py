"""Tensors cut, joined and reshaped, at sizes that the data may decide."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tvm import relax, te

from .context import Context
from .registry import converts
from .sizes import count, is_number, known, largest, plain, same, smallest

EVERYTHING = 2**62  # an end of a slice from here on is none


def clamped(start: Any, end: Any, size: Any) -> tuple[Any, Any]:
    """Begin and end of a slice of an axis as torch takes them: from its end if negative, never outside, never backwards."""

    def placed(bound: Any) -> Any:
        if isinstance(bound, int):
            if bound == 0 or known(size) is not None:
                return min(max(bound if bound >= 0 else bound + known(size), 0), known(size)) if bound else 0
            return smallest(bound, size) if bound > 0 else largest(size + bound, 0)
        if same(bound, size):
            return size
        return largest(smallest(bound, size), 0)

    begin = 0 if start is None else placed(plain(start))
    everything = end is None or (isinstance(end, int) and end >= EVERYTHING)
    stop = size if everything else placed(plain(end))
    return begin, stop if known(begin) == 0 else largest(stop, begin)


def cut(context: Context, x: relax.Expr, axis: int, begin: Any, end: Any, step: int = 1) -> relax.Expr:
    """x[begin:end:step] along an axis, for bounds that `clamped` made."""
    if known(begin) == 0 and step == 1 and same(end, context.dims(x)[axis]):
        return x
    if known(begin) is not None and known(end) is not None:
        return context.emit(relax.op.strided_slice(x, [axis], [begin], [end], [step]))
    length = end - begin if step == 1 else (end - begin + (step - 1)) // step
    shape = [*context.dims(x)[:axis], length, *context.dims(x)[axis + 1 :]]

    def moved(source: te.Tensor) -> te.Tensor:
        def element(*places):
            return source(*places[:axis], begin + places[axis] * step, *places[axis + 1 :])

        return te.compute(shape, element, "slice")

    return context.compute(moved, x)


@converts("aten::slice.Tensor")
def slice_(context: Context) -> relax.Expr:
    x, axis = context["self"], context["dim"] % context["self"].ty.ndim
    size = context.dims(x)[axis]
    begin, end = clamped(*(_from_the_end(context[name], size) for name in ("start", "end")), size)
    return cut(context, x, axis, begin, end, context["step"])


def _from_the_end(bound: Any, size: Any) -> Any:
    """A bound that only the running module knows, which counts from the end of the axis if it is negative."""
    if not is_number(bound) or isinstance(bound, int):
        return bound
    return bound + size * smallest(largest(0 - bound, 0), 1)


@converts("aten::narrow", "aten::narrow_copy")
def narrow(context: Context) -> relax.Expr:
    start, length = context["start"], context["length"]
    return cut(context, context["self"], context["dim"] % context["self"].ty.ndim, start, start + length)


@converts("aten::cat", "aten::concat")
def cat(context: Context) -> relax.Expr:
    tensors = [context.cast(tensor, context.dtype) for tensor in context["tensors"]]
    rank = max(tensor.ty.ndim for tensor in tensors)
    tensors = [tensor for tensor in tensors if tensor.ty.ndim == rank]  # an empty vector is left out, whatever the others are
    return context.emit(relax.op.concat(tensors, context["dim"] % rank))


@converts("aten::stack")
def stack(context: Context) -> relax.Expr:
    tensors = [context.cast(tensor, context.dtype) for tensor in context["tensors"]]
    return context.emit(relax.op.stack(tensors, context["dim"] % (tensors[0].ty.ndim + 1)))


@converts("aten::split_with_sizes", "aten::split_with_sizes_copy")
def split_with_sizes(context: Context) -> list[relax.Expr]:
    return _pieces(context, context["split_sizes"])


@converts("aten::split.Tensor", "aten::split_copy.Tensor")
def split(context: Context) -> list[relax.Expr]:
    x = context["self"]
    size = known(context.dims(x)[context["dim"]])
    if size is None:
        step, pieces = context["split_size"], len(context.result)
        axis, dims = context["dim"] % x.ty.ndim, context.dims(x)
        return [cut(context, x, axis, *clamped(i * step, (i + 1) * step, dims[axis])) for i in range(pieces)]
    return _pieces(context, [min(context["split_size"], size - at) for at in range(0, size, context["split_size"])] or [0])


def _pieces(context: Context, sizes: Sequence) -> list[relax.Expr]:
    """ValueError from the running module for sizes that are not those of the axis together."""
    x = context["self"]
    axis = context["dim"] % x.ty.ndim
    total = context.dims(x)[axis]
    if known(total) is not None and all(isinstance(size, int) for size in sizes):
        ends = [sum(sizes[:i]) for i in range(1, len(sizes))]
        return context.emit_all(relax.op.split(x, ends, axis)) if ends else [x]
    sizes = context.checked(sizes, what=f"{context.op}: split sizes")
    missing = total - count_sum(sizes)
    if known(missing) is None and not same(missing, 0):
        context.checked([missing, 0 - missing], what=f"{context.op}: rows beside the split sizes")
    bounds = [count_sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [cut(context, x, axis, begin, end) for begin, end in pairwise(bounds)]


def count_sum(sizes: Sequence) -> Any:
    return sum(sizes[1:], sizes[0]) if sizes else 0


@converts("aten::unbind.int", "aten::unbind_copy.int")
def unbind(context: Context) -> list[relax.Expr]:
    x = context["self"]
    axis, dims = context["dim"] % x.ty.ndim, context.dims(x)
    if known(dims[axis]) is None:
        context.refuse("expected a size that is known, as each piece is a tensor of its own")
    return context.default()


@converts("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::view_copy", "aten::_reshape_alias")
def reshape(context: Context) -> relax.Expr:
    x = context["self"]
    given = context.args.get("size", context.args.get("shape"))
    dims = context.result_dims(given)
    if any(isinstance(dim, int) and dim < 0 for dim in dims):
        others = count([dim for dim in dims if not (isinstance(dim, int) and dim < 0)])
        total = count(context.dims(x))
        dims = [total // others if isinstance(dim, int) and dim < 0 else dim for dim in dims]
    have = context.dims(x)
    if len(have) == len(dims) and all(map(same, have, dims)):
        return x
    return context.reshape(x, dims)


@converts("aten::expand", "aten::expand_copy", "aten::broadcast_to")
def expand(context: Context) -> relax.Expr:
    x = context["self"]
    have = context.dims(x)
    given = list(context["size"])
    have = [1] * (len(given) - len(have)) + have
    dims = context.result_dims(
        [old if isinstance(new, int) and new == -1 else new for new, old in zip(given, have, strict=True)]
    )
    return context.broadcast(x, context.checked(dims, dtype=context.dtype))


@converts("aten::repeat")
def repeat(context: Context) -> relax.Expr:
    """Each axis spread over a new one in front of it, so that repeats may be numbers that the data decide."""
    x, repeats = context["self"], list(context["repeats"])
    dims = [1] * (len(repeats) - x.ty.ndim) + context.dims(x)
    if all(isinstance(times, int) for times in repeats):
        return context.default()
    x = context.reshape(x, [part for size in dims for part in (1, size)])
    x = context.broadcast(x, [part for times, size in zip(repeats, dims, strict=True) for part in (times, size)])
    return context.reshape(x, [times * size for times, size in zip(repeats, dims, strict=True)])


@converts("aten::squeeze", "aten::squeeze.dim", "aten::squeeze.dims")
def squeeze(context: Context) -> relax.Expr:
    """Only sizes that are known to be 1 go, as in torch's graph."""
    x = context["self"]
    wanted = context.args.get("dim")
    axes = range(x.ty.ndim) if wanted is None else [wanted] if isinstance(wanted, int) else wanted
    gone = {axis % max(x.ty.ndim, 1) for axis in axes if known(context.dims(x)[axis]) == 1} if x.ty.ndim else set()
    return context.emit(relax.op.squeeze(x, sorted(gone))) if gone else x


@converts("aten::_to_copy", "aten::to.dtype")
def to_copy(context: Context) -> relax.Expr:
    x = context["self"]
    if context.dtype == "bool" and str(x.ty.dtype) != "bool":
        return context.emit(relax.op.not_equal(x, relax.const(0, str(x.ty.dtype))))
    return context.cast(x, context.dtype)
