"""Layers on dense tensors that TVM's importer lacks or gets wrong."""

from collections.abc import Sequence
from functools import partial

import tvm
from tvm import relax, te

from .context import Context
from .layout import cut
from .registry import converts
from .sizes import known, smallest

PRODUCTS = ("linear", "mm", "bmm", "addmm", "convolution")


@converts(*(f"aten::{name}" for name in PRODUCTS))
def product(context: Context) -> relax.Expr:
    """TVM's, which multiplies in float32 whatever it is given."""
    if context.dtype not in ("float32", "float16", "bfloat16"):
        context.refuse(f"expected float32, given {context.dtype}; call .float() before it")
    return context.default()


@converts("aten::native_group_norm")
def group_norm(context: Context) -> list[relax.Expr]:
    """Rows [N, C] by hand: TVM's takes axes behind the channels, of which there are none."""
    x, groups, eps = context["input"], context["group"], context["eps"]
    if x.ty.ndim > 2:
        return [context.default()]
    rows, channels = context.dims(x)
    grouped = context.reshape(x, [rows, groups, channels // groups])
    mean = context.emit(relax.op.mean(grouped, [2], True))
    variance = context.emit(relax.op.variance(grouped, [2], True))
    root = context.emit(relax.op.sqrt(context.emit(relax.op.add(variance, relax.const(eps, context.dtype)))))
    centred = context.emit(relax.op.subtract(grouped, mean))
    out = context.reshape(context.emit(relax.op.divide(centred, root)), [rows, channels])
    for name, op in (("weight", relax.op.multiply), ("bias", relax.op.add)):
        if context[name] is not None:
            out = context.emit(op(out, context[name]))
    return [out]


@converts("aten::grid_sampler_2d")
def grid_sampler(context: Context) -> relax.Expr:
    """TVM's, whose grid has its two coordinates in front of the places."""
    modes, paddings = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    grid = context.permute(context["grid"], [0, 3, 1, 2])
    return context.emit(
        relax.op.image.grid_sample(
            context["input"],
            grid,
            method=modes[context["interpolation_mode"]],
            layout="NCHW",
            padding_mode=paddings[context["padding_mode"]],
            align_corners=context["align_corners"],
        )
    )


def _resized(method: str, context: Context) -> relax.Expr:
    x = context["input"] if "input" in context.args else context["self"]
    dims = context.result_dims([0] * 4)[2:]
    size = [known(dim) for dim in dims]
    corners = context.args.get("align_corners", False)
    if None in size and method == "linear" and not corners and 0 not in size:
        factors = context.args.get("scale_factors") or [context.args.get("scales_h"), context.args.get("scales_w")]
        return _bilinear(context, x, dims, factors)
    if None in size or 0 in size:
        context.refuse("expected an output size that is known when the model is exported")
    mode = "align_corners" if corners else "asymmetric" if method == "nearest_neighbor" else "half_pixel"
    options = {"coordinate_transformation_mode": mode, "rounding_method": "floor" if method == "nearest_neighbor" else ""}
    return context.emit(relax.op.image.resize2d(x, tuple(size), layout="NCHW", method=method, **options))


def _bilinear(context: Context, x: relax.Expr, size: Sequence, factors: Sequence[float | None]) -> relax.Expr:
    """x [B, C, H, W] -> [B, C, *size], sizes that only the running module knows: TVM's own takes such for numbers.

    Place i of n reads at max(0, (i + 1/2) N / n - 1/2), in float32 as torch does; a factor takes the place of n / N.
    """
    batch, channels, *old = context.dims(x)

    def bilinear(source: te.Tensor) -> te.Tensor:
        def taps(place: tvm.tirx.Var, axis: int) -> tuple:
            number, half, real = old[axis], tvm.tirx.const(0.5, "float32"), partial(tvm.tirx.Cast, "float32")
            factor = factors[axis]
            step = real(number) / real(size[axis]) if factor is None else tvm.tirx.const(1 / factor, "float32")
            at = tvm.tirx.max((real(place) + half) * step - half, tvm.tirx.const(0, "float32"))
            low = smallest(tvm.tirx.Cast("int64", at), number - 1)
            return low, smallest(low + 1, number - 1), at - real(low)

        def element(b, c, i, j):
            (top, bottom, down), (left, right, across) = taps(i, 0), taps(j, 1)
            rows = [source(b, c, row, left) * (1 - across) + source(b, c, row, right) * across for row in (top, bottom)]
            return rows[0] * (1 - down) + rows[1] * down

        return te.compute([batch, channels, *size], element, "bilinear")

    return context.compute(bilinear, x)


converts("aten::upsample_nearest2d", "aten::upsample_nearest2d.vec")(partial(_resized, "nearest_neighbor"))
converts("aten::upsample_bilinear2d", "aten::upsample_bilinear2d.vec")(partial(_resized, "linear"))


@converts("aten::constant_pad_nd")
def pad(context: Context) -> relax.Expr:
    """Negative padding cuts."""
    x, given, value = context["self"], list(context["pad"]), context["value"]
    rank = x.ty.ndim
    around = [(0, 0)] * (rank - len(given) // 2) + [tuple(given[i : i + 2]) for i in range(len(given) - 2, -1, -2)]
    for axis, (before, after) in enumerate(around):
        size = context.dims(x)[axis]
        if isinstance(before, int) and isinstance(after, int) and min(before, after) >= 0:
            continue
        if not (isinstance(before, int) and isinstance(after, int)):
            context.refuse("expected padding that is known when the model is exported")
        x = cut(context, x, axis, max(-before, 0), size - max(-after, 0))
    widths = [max(width, 0) for pair in around for width in pair]
    return context.emit(relax.op.nn.pad(x, widths, pad_value=float(value))) if any(widths) else x
