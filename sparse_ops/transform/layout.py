"""Fewer and plainer reshapes, transpositions and slices, so that the passes behind find one form of each computation."""

import tvm
from tvm import relax

from .rewrite import Walk, axes_of, op_is, product, rewrite_pass, same, same_shape, scalar, shape_of, static


def SimplifyLayout() -> tvm.transform.Pass:
    """Bring what only moves elements into one form.

    - `squeeze`, `expand_dims` and `flatten` become `reshape`, `split` and `take` of one element become `strided_slice`;
    - what changes nothing goes, what follows itself is merged; axes of size 1 take no part in transpositions;
    - slices, and reshapes that split axes, move before a transposition; slices also move before such a reshape.
    """
    return rewrite_pass("SimplifyLayout", _simplify)


def _simplify(walk: Walk, call: relax.Call) -> relax.Expr | None:
    x = call.args[0] if call.args else None
    shape = shape_of(call)
    if op_is(call, "split") and shape_of(x):
        return _split(walk, call)
    if shape is None or not isinstance(x.ty, relax.TensorType) or shape_of(x) is None:
        return None
    if op_is(call, "reshape", "squeeze", "expand_dims", "flatten"):
        return _reshape(walk, x, shape)
    if op_is(call, "broadcast_to") and same_shape(shape, shape_of(x)):
        return x
    if op_is(call, "permute_dims"):
        return _permute(walk, x, axes_of(call))
    if op_is(call, "strided_slice"):
        found = slice_of(call)
        return None if found is None else _slice(walk, x, *found)
    if op_is(call, "take"):
        return _take(walk, call, shape)
    return None


def slice_of(call: relax.Call) -> tuple[int, int, int] | None:
    """(axis, begin, end) of a `strided_slice` that takes a range of one axis, all known before run time."""
    x, axes, begin, end, *strides = call.args
    if any(len(part) != 1 for part in (axes, begin, end)) or any(_number(step[0]) != 1 for step in strides):
        return None
    axis, first, last = (_number(part[0]) for part in (axes, begin, end))
    shape = shape_of(x)
    if None in (axis, first, last) or shape is None or (size := static(shape[axis])) is None:
        return None
    first, last = (max(0, min(place + size if place < 0 else place, size)) for place in (first, last))
    return (axis % len(shape), first, last) if first < last else None


def _number(value) -> int | None:
    return int(value) if isinstance(value, tvm.tirx.IntImm) else None


def _reshape(walk: Walk, x: relax.Expr, shape: list) -> relax.Expr:
    while (inner := walk.call_of(x, "reshape")) is not None:
        x = inner.args[0]
    inner = walk.call_of(x, "permute_dims")
    parts = groups(shape_of(x), shape)
    splits = [sum(static(shape[axis]) != 1 for axis in after) > 1 for _, after in parts]
    if inner is None or not any(splits) or any(len(before) != 1 for before, _ in parts):
        return walk.reshape(x, shape)
    # Every axis is split for itself: that can as well be done before the transposition.
    source, axes = inner.args[0], axes_of(inner)
    order = sorted(range(len(axes)), key=lambda place: axes[place])  # where the axes of the source went
    places = [axis for place in order for axis in parts[place][1]]
    split = _reshape(walk, source, [shape[axis] for axis in places])
    return _permute(walk, split, [places.index(axis) for axis in range(len(shape))])


def _permute(walk: Walk, x: relax.Expr, axes: list[int]) -> relax.Expr:
    if (inner := walk.call_of(x, "permute_dims")) is not None:
        x, axes = inner.args[0], [axes_of(inner)[axis] for axis in axes]
    shape = shape_of(x)
    wide = [axis for axis, dim in enumerate(shape) if static(dim) != 1]
    if len(wide) == len(shape):
        return walk.permute(x, axes)
    target = [shape[axis] for axis in axes]
    narrow = _reshape(walk, x, [shape[axis] for axis in wide])
    moved = [wide.index(axis) for axis in axes if axis in wide]
    return _reshape(walk, narrow if moved == sorted(moved) else _permute(walk, narrow, moved), target)


def _slice(walk: Walk, x: relax.Expr, axis: int, begin: int, end: int) -> relax.Expr:
    shape = shape_of(x)
    if begin == 0 and static(shape[axis]) == end:
        return x
    if (inner := walk.call_of(x, "permute_dims")) is not None:
        axes = axes_of(inner)
        return _permute(walk, _slice(walk, inner.args[0], axes[axis], begin, end), axes)
    if (inner := walk.call_of(x, "reshape")) is not None:
        source = inner.args[0]
        before, after = next(part for part in groups(shape_of(source), shape) if axis in part[1])
        place = after.index(axis)
        width = static(product(shape[a] for a in after[place + 1 :]))
        if len(before) == 1 and width and all(static(shape[a]) == 1 for a in after[:place]):
            cut = _slice(walk, source, before[0], begin * width, end * width)
            return _reshape(walk, cut, [end - begin if a == axis else dim for a, dim in enumerate(shape)])
    return walk.emit(relax.op.strided_slice(x, [axis], [begin], [end]))


def _split(walk: Walk, call: relax.Call) -> relax.Expr | None:
    (x,) = call.args
    if not isinstance(call.ty, relax.TupleType):  # one part
        return x
    axis = int(call.attrs.axis) % len(shape_of(x))
    widths = [static(part.shape.values[axis]) for part in call.ty.fields]
    if None in widths:
        return None
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return relax.Tuple([_slice(walk, x, axis, end - width, end) for end, width in zip(ends, widths, strict=True)])


def _take(walk: Walk, call: relax.Call, shape: list) -> relax.Expr | None:
    x, index = call.args
    place, axis = scalar(index), call.attrs.axis
    if place is None or shape_of(index) or axis is None:
        return None
    axis, place = int(axis) % len(shape_of(x)), int(place)
    size = static(shape_of(x)[axis])
    if size is None or not 0 <= place < size:
        return None
    return _reshape(walk, _slice(walk, x, axis, place, place + 1), shape)


def groups(old: list, new: list) -> list[tuple[list[int], list[int]]]:
    """How a reshape takes axes together: [(old axes, new axes), ...] of equal products, as many groups as can be told."""
    found, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        ends = ((a, b) for a in range(i + 1, len(old) + 1) for b in range(j + 1, len(new) + 1))
        a, b = next((end for end in ends if same(product(old[i : end[0]]), product(new[j : end[1]]))), (len(old), len(new)))
        found.append((list(range(i, a)), list(range(j, b))))
        i, j = a, b
    if found:  # axes of size 1 may be left on one side
        found[-1][0].extend(range(i, len(old)))
        found[-1][1].extend(range(j, len(new)))
    return found
