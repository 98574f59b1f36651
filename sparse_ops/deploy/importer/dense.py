"""Layers on dense tensors that TVM's importer lacks or gets wrong."""

from tvm import relax

from sparse_ops.op import conv_transpose3d, resize_bilinear

from .context import Context
from .registry import converts
from .sizes import known

PRODUCTS = ("linear", "mm", "bmm", "addmm")


@converts(*(f"aten::{name}" for name in PRODUCTS))
def product(context: Context) -> relax.Expr:
    """TVM's, which multiplies in float32 whatever it is given."""
    check_dtype(context)
    return context.default()


def check_dtype(context: Context) -> None:
    if context.dtype not in ("float32", "float16", "bfloat16"):
        context.refuse(f"expected float32, given {context.dtype}; call .float() before it")


@converts("aten::convolution")
def convolution(context: Context) -> relax.Expr:
    """TVM's, and a transposed one by our op, which takes axes that are missing as of size 1."""
    check_dtype(context)
    if not context["transposed"]:
        return context.default()
    if context["groups"] != 1:
        context.refuse(f"expected a transposed convolution of one group, given {context['groups']} groups")
    x, weight, bias = context["input"], context["weight"], context["bias"]
    flat = [1] * (5 - x.ty.ndim)

    def deep(tensor):
        dims = context.dims(tensor)
        return context.reshape(tensor, [*dims[:2], *flat, *dims[2:]]) if flat else tensor

    fills = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    options = {name: (*([fill] * len(flat)), *context[name]) for name, fill in fills.items()}
    bias = bias if bias is None else context.cast(bias, "float32")
    out = context.emit(conv_transpose3d(deep(x), deep(weight), bias, **options))
    dims = context.dims(out)
    return context.reshape(out, [*dims[:2], *dims[2 + len(flat) :]]) if flat else out


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


@converts("aten::upsample_nearest2d", "aten::upsample_nearest2d.vec")
def upsample_nearest(context: Context) -> relax.Expr:
    x = context["input"] if "input" in context.args else context["self"]
    size = [known(dim) for dim in context.result_dims([0] * 4)[2:]]
    if None in size or 0 in size:
        context.refuse("expected an output size that is known when the model is exported")
    options = {"coordinate_transformation_mode": "asymmetric", "rounding_method": "floor"}
    return context.emit(relax.op.image.resize2d(x, tuple(size), layout="NCHW", method="nearest_neighbor", **options))


@converts("aten::upsample_bilinear2d", "aten::upsample_bilinear2d.vec")
def upsample_bilinear(context: Context) -> relax.Expr:
    """By our op, at sizes that only the running module knows, too."""
    x = context["input"] if "input" in context.args else context["self"]
    size = context.result_dims()[2:]
    if None in size:
        context.refuse("expected an output size that follows from sizes of the inputs")
    size = context.checked(size, 1, what="size")
    return context.emit(resize_bilinear(x, size, context["align_corners"]))
