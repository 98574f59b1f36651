"""Softmax over the last axis, `R.sparse_ops.softmax`."""

from tvm import relax

from tir_kernels.spec.softmax import Softmax

from .register import call_spec, register_op
from .shapes import float_shape


def softmax(x: relax.Expr) -> relax.Call:
    """`exp(x) / sum(exp(x))` over the last axis, without overflow.

    x float32 or bfloat16 [..., C], every size of which may be symbolic and 0. Returns the type of x; computed in float32.
    Minus infinity gives 0. A row gives NaN, as in torch, if all of it is minus infinity or any of it plus infinity or NaN.

    Raises ValueError if x is of another dtype, has no dimensions, or an unknown shape.
    """
    return _make(x)


def _infer(call: relax.Call) -> relax.TensorType:
    return relax.TensorType(float_shape(call, 0, "x", 1), str(call.args[0].ty.dtype))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return call_spec(bb, Softmax(call.ty.ndim, str(call.ty.dtype)), call.args, call.ty)


_make = register_op("softmax", _infer, _legalize)
