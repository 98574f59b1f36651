"""Dense convolutions, and what follows them on the same elements -> `sparse_ops.conv3d`."""

import tvm
from tvm import relax

from ..op.conv import conv3d
from .absorb import recognizer
from .rewrite import Walk, rewrite_pass, shape_of, static
from .rows import is_feature

LAYOUTS = {"nn.conv3d": ("NCDHW", "OIDHW"), "nn.conv2d": ("NCHW", "OIHW")}
GEOMETRY = ("stride", "padding", "dilation")


def RecognizeConv() -> tvm.transform.Pass:
    """`R.nn.conv3d` and `R.nn.conv2d` -> `R.sparse_ops.conv3d`, with what is applied to its result.

    Channels first, without groups, as much padding behind as before. A convolution of images is one of unit depth. In
    this order, each at most once, and only where nothing else reads the value in between: a bias [Cout, 1, ..., 1], a
    residual, an activation. Run `SimplifyLayout` and `RecognizeActivation` before.
    """
    return rewrite_pass("RecognizeConv", recognizer("conv3d", _conv, *LAYOUTS))


def _conv(walk: Walk, call: relax.Call) -> relax.Expr | None:
    x, weight = call.args
    attrs, axes = call.attrs, x.ty.ndim - 2
    layouts = LAYOUTS[call.op.name.removeprefix("relax.")]
    if not all(is_feature(tensor) and tensor.ty.dtype == call.ty.dtype for tensor in (call, x, weight)):
        return None
    if (attrs.data_layout, attrs.kernel_layout, attrs.out_layout) != (*layouts, layouts[0]) or int(attrs.groups) != 1:
        return None
    if None in map(static, [shape_of(x)[1], *shape_of(weight)]):
        return None
    stride, before, behind, dilation = (
        [int(number) for number in numbers]
        for numbers in (attrs.strides, attrs.padding[:axes], attrs.padding[axes:], attrs.dilation)
    )
    if before != behind:
        return None
    flat = 3 - axes  # axes that are missing

    def deep(tensor):
        shape = shape_of(tensor)
        return walk.reshape(tensor, [*shape[:2], *[1] * flat, *shape[2:]])

    numbers = ([fill] * flat + given for fill, given in ((1, stride), (0, before), (1, dilation)))
    conv = conv3d(deep(x), deep(weight), **dict(zip(GEOMETRY, map(tuple, numbers), strict=True)))
    return walk.reshape(walk.emit(conv), shape_of(call))
