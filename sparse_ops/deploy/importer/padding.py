"""Padding of tensors, by a value or by what lies at or behind their edges."""

from typing import Any

import torch
from tvm import relax

from sparse_ops.op.memory import checked_sizes

from .context import Context
from .layout import cut
from .registry import converts
from .sizes import known

LEAST = {
    "replicate": lambda most: 1,
    "reflect": lambda most: most + 1,
    "circular": lambda most: most,
}  # of an axis, by its padding


@converts("aten::constant_pad_nd")
def pad_by_value(context: Context) -> relax.Expr:
    return by_value(context, context["value"])


@converts("aten::pad")
def pad(context: Context) -> relax.Expr:
    if context["mode"] == "constant":
        return by_value(context, context["value"] or 0)
    return by_edges(context, context["mode"], context["pad"])


for _axes in (1, 2, 3):
    converts(f"aten::replication_pad{_axes}d")(lambda context: by_edges(context, "replicate", context["padding"]))
    converts(f"aten::reflection_pad{_axes}d")(lambda context: by_edges(context, "reflect", context["padding"]))


def around(context: Context, given: list) -> list[tuple[Any, Any]]:
    """(before, behind) of every axis, from torch's list, which begins with the last one."""
    rank = context["self"].ty.ndim
    if not all(isinstance(width, int) for width in given):
        context.refuse("expected padding that is known when the model is exported")
    return [(0, 0)] * (rank - len(given) // 2) + [tuple(given[i : i + 2]) for i in range(len(given) - 2, -1, -2)]


def by_value(context: Context, value: float) -> relax.Expr:
    """Negative padding cuts."""
    x, widths = context["self"], around(context, list(context["pad"]))
    for axis, (before, behind) in enumerate(widths):
        if min(before, behind) < 0:
            x = cut(context, x, axis, max(-before, 0), context.dims(x)[axis] - max(-behind, 0))
    flat = [max(width, 0) for pair in widths for width in pair]
    return context.emit(relax.op.nn.pad(x, flat, pad_value=float(value))) if any(flat) else x


def by_edges(context: Context, mode: str, given: list) -> relax.Expr:
    """By the voxels at the edge, those before it in reverse, or those at the other end."""
    x, widths = context["self"], around(context, list(given))
    flat = [width for pair in widths for width in pair]
    if min(flat) < 0:
        context.refuse(f"expected padding of at least 0 for mode {mode!r}, given {list(given)}")
    if not any(flat):
        return x
    if not (mode == "replicate" and becomes_part(context, widths)):
        x = with_edges(context, x, mode, widths)
    return context.emit(relax.op.nn.pad(x, flat, pad_mode=mode))


def becomes_part(context: Context, widths: list[tuple[int, int]]) -> bool:
    """Whether only convolutions read the result that take its padding for their own, and look at sizes themselves."""

    def takes(node) -> bool:
        if node.target is not torch.ops.aten.convolution.default or node.args[0] is not context.node:
            return False
        _, weight, _, _, padding, _, transposed, _, groups = node.args
        return weight is not context.node and not any(padding) and not transposed and groups == 1 and len(padding) > 1

    return all(before == behind for before, behind in widths) and all(map(takes, context.node.users))


def with_edges(context: Context, x: relax.Expr, mode: str, widths: list[tuple[int, int]]) -> relax.Expr:
    """x, once the running module has found that its axes are as long as their padding needs."""
    dims = context.dims(x)
    for axis, pair in enumerate(widths):
        if max(pair) and known(dims[axis]) is None:
            what = f"{context.op}: axis {axis} of what is padded by {max(pair)} in mode {mode!r}"
            shape = context.emit(checked_sizes(what, [dims[axis]], LEAST[mode](max(pair))))
            dims[axis] = context.size()
            context.builder.match_cast(shape, relax.ShapeType([dims[axis]]))
    return context.named(x, dims)
