"""Dense convolutions, and what follows them on the same elements -> `sparse_ops.conv3d` and `conv_transpose3d`."""

import tvm
from tvm import relax

from ..op.conv import conv3d
from ..op.conv_transpose import conv_transpose3d
from .absorb import recognizer
from .rewrite import Walk, rewrite_pass, shape_of, static
from .rows import is_feature

LAYOUTS = {"nn.conv3d": ("NCDHW", "OIDHW"), "nn.conv2d": ("NCHW", "OIHW")}
TRANSPOSED = {
    "nn.conv3d_transpose": ("NCDHW", "IODHW"),
    "nn.conv2d_transpose": ("NCHW", "IOHW"),
    "nn.conv1d_transpose": ("NCW", "IOW"),
}


def RecognizeConv() -> tvm.transform.Pass:
    """`R.nn.conv3d` and `R.nn.conv2d` -> `R.sparse_ops.conv3d`, with what is applied to its result, and the padding before it.

    Channels first, without groups, as much padding behind as before. A convolution of images is one of unit depth. In
    this order, each at most once, and only where nothing else reads the value in between: a bias [Cout, 1, ..., 1], a
    residual, an activation. `R.nn.pad` of the axes behind the channels, by zeros or by replicating, becomes the padding of a
    convolution that has none. Run `SimplifyLayout` and `RecognizeActivation` before.
    """
    return rewrite_pass("RecognizeConv", recognizer("conv3d", _conv, *LAYOUTS))


def RecognizeConvTranspose() -> tvm.transform.Pass:
    """`R.nn.conv1d_transpose`, `conv2d_transpose`, `conv3d_transpose` -> `R.sparse_ops.conv_transpose3d`.

    Channels first, without groups, as much padding behind as before, and what follows as `RecognizeConv`.
    """
    return rewrite_pass("RecognizeConvTranspose", recognizer("conv_transpose3d", _conv_transpose, *TRANSPOSED))


def _conv(walk: Walk, call: relax.Call) -> relax.Expr | None:
    x, weight = call.args
    if (options := _options(call, LAYOUTS)) is None:
        return None
    mode = "zeros"
    if not any(options["padding"]) and (pad := _padding(walk, x)) is not None:
        x, options["padding"], mode = pad
    return _deep(walk, call, lambda x, weight, axes: conv3d(x, weight, **axes, padding_mode=mode), x, weight, options)


def _conv_transpose(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if (options := _options(call, TRANSPOSED)) is None:
        return None
    options["output_padding"] = [int(number) for number in call.attrs.output_padding]
    return _deep(walk, call, lambda x, weight, axes: conv_transpose3d(x, weight, **axes), *call.args, options)


def _options(call: relax.Call, layouts: dict[str, tuple[str, str]]) -> dict[str, list[int]] | None:
    """Stride, padding and dilation of a convolution that ours computes; None for any other."""
    x, weight = call.args
    attrs, axes = call.attrs, x.ty.ndim - 2
    of_data, of_kernel = layouts[call.op.name.removeprefix("relax.")]
    if not all(is_feature(tensor) and tensor.ty.dtype == call.ty.dtype for tensor in (call, x, weight)):
        return None
    if (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) != (of_data, of_kernel, of_data) or int(attrs.groups) != 1:
        return None
    if None in map(static, [shape_of(x)[1], *shape_of(weight)]):
        return None
    stride, before, behind, dilation = (
        [int(number) for number in numbers]
        for numbers in (attrs.strides, attrs.padding[:axes], attrs.padding[axes:], attrs.dilation)
    )
    return {"stride": stride, "padding": before, "dilation": dilation} if before == behind else None


def _padding(walk: Walk, x: relax.Expr) -> tuple[relax.Expr, list[int], str] | None:
    """What a tensor was before it was padded, by how much on either side of all axes behind the channels, and how."""
    if (pad := walk.call_of(x, "nn.pad")) is None:
        return None
    widths, mode = [int(width) for width in pad.attrs.pad_width], str(pad.attrs.pad_mode)
    mode = {"replicate": "replicate", "constant": "zeros" if float(pad.attrs.pad_value) == 0 else None}.get(mode)
    fits = mode and widths[::2] == widths[1::2] and not any(widths[:4]) and min(widths) >= 0
    return (pad.args[0], widths[4::2], mode) if fits and is_feature(pad.args[0]) else None


def _deep(walk: Walk, call: relax.Call, make, x: relax.Expr, weight: relax.Expr, options: dict[str, list[int]]) -> relax.Expr:
    """The call of an op with three axes: those that are missing are of size 1."""
    flat = 5 - x.ty.ndim
    fills = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}

    def deep(tensor):
        shape = shape_of(tensor)
        return walk.reshape(tensor, [*shape[:2], *[1] * flat, *shape[2:]])

    axes = {name: tuple([fills[name]] * flat + given) for name, given in options.items()}
    return walk.reshape(walk.emit(make(deep(x), deep(weight), axes)), shape_of(call))
