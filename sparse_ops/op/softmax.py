"""Softmax over the last axis, `R.sparse_ops.softmax`."""

from tvm import relax

from tir_kernels.spec.softmax import Softmax

from .register import call_spec, register_op
from .signature import Bound, Signature, features

SIGNATURE = Signature(
    "softmax",
    (features("x", "rows", ...),),
    result=("rows", ...),
    narrows=False,  # to round a logit is to multiply its weight
)


def softmax(x: relax.Expr) -> relax.Call:
    """`exp(x) / sum(exp(x))` over the last axis, without overflow.

    x float32, bfloat16 or float16 [..., C], every size of which may be symbolic and 0. Returns the type of x; computed in
    float32. Minus infinity gives 0. A row gives NaN, as in torch, if all of it is minus infinity or any of it plus infinity or
    NaN.

    Raises ValueError if x is of another dtype, has no dimensions, or an unknown shape.
    """
    return _make(x=x)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    return call_spec(bb, Softmax(bound.type.ndim, bound.dtype), bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
