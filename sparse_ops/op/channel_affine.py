"""A factor and a summand for every channel, `R.sparse_ops.channel_affine`: batch normalisation with running statistics."""

from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.channel_affine import ChannelAffine

from .register import call_spec, check_choice, register_op
from .signature import Bound, Signature, features, parameter

SIGNATURE = Signature(
    "channel_affine",
    (features("x", "batch", "channels", ...), parameter("scale", "channels"), parameter("shift", "channels")),
    options=("activation",),
    known=("channels",),
    result=("batch", "channels", ...),
)


def channel_affine(x: relax.Expr, scale: relax.Expr, shift: relax.Expr, activation: str = "none") -> relax.Call:
    """`activation(x * scale + shift)`, by channel.

    x float32, bfloat16 or float16 [N, C], or dense [B, C, *spatial] as in torch; all sizes but C may be symbolic and 0; scale,
    shift float32 [C]; activation one of `ACTIVATIONS`. Returns the type of x; computed in float32.

    Raises ValueError naming the argument or option that does not fit.
    """
    check_choice("channel_affine", "activation", activation, ACTIVATIONS)
    return _make(x=x, scale=scale, shift=shift, activation=activation)


def affine_of_batch_norm(
    mean: relax.Expr, variance: relax.Expr, weight: relax.Expr | None, bias: relax.Expr | None, eps: float
) -> tuple[relax.Expr, relax.Expr]:
    """(scale, shift) of `(x - mean) / sqrt(variance + eps) * weight + bias`; all float32 [C].

    Of parameters alone: computed once where parameters are packed once.
    """
    deviation = relax.op.sqrt(relax.op.add(variance, relax.const(eps, "float32")))
    scale = relax.op.divide(relax.const(1.0, "float32") if weight is None else weight, deviation)
    moved = relax.op.multiply(mean, scale)
    return scale, relax.op.negative(moved) if bias is None else relax.op.subtract(bias, moved)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = ChannelAffine(bound.dims["channels"], bound.type.ndim, bound.dtype, bound.options["activation"])
    return call_spec(bb, spec, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
