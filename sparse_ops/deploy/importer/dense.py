"""Layers on dense tensors that TVM's importer lacks or gets wrong."""

from functools import partial

from tvm import relax

from .context import Context
from .layout import cut
from .registry import converts
from .sizes import known

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
    size = [known(dim) for dim in context.result_dims([0] * 4)[2:]]
    if None in size or 0 in size:
        context.refuse("expected an output size that is known when the model is exported")
    corners = context.args.get("align_corners", False)
    mode = "align_corners" if corners else "asymmetric" if method == "nearest_neighbor" else "half_pixel"
    options = {"coordinate_transformation_mode": mode, "rounding_method": "floor" if method == "nearest_neighbor" else ""}
    return context.emit(relax.op.image.resize2d(x, tuple(size), layout="NCHW", method=method, **options))


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
