"""Layer normalisation over the channels of dense tensors, `R.sparse_ops.channel_layer_norm`."""

from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.channel_layer_norm import ChannelLayerNorm

from .numbers import check_positive
from .register import call_spec, check_choice, register_op
from .signature import Bound, Signature, features, parameter

SIGNATURE = Signature(
    "channel_layer_norm",
    (features("x", "batch", "channels", ...), parameter("weight", "channels"), parameter("bias", "channels")),
    options=("eps", "activation"),
    known=("channels",),
    result=("batch", "channels", ...),
)


def channel_layer_norm(
    x: relax.Expr, weight: relax.Expr, bias: relax.Expr, eps: float = 1e-5, activation: str = "none"
) -> relax.Call:
    """`activation((x - mean) / sqrt(variance + eps) * weight + bias)`, over the channels at every site by itself.

    x float32, bfloat16 or float16 [B, C, *spatial], as in torch; all sizes but C may be symbolic and 0; weight, bias float32
    [C]; activation one of `ACTIVATIONS`. Returns the type of x; computed in float32.

    Raises ValueError naming the argument or option that does not fit.
    """
    check_choice("channel_layer_norm", "activation", activation, ACTIVATIONS)
    return _make(x=x, weight=weight, bias=bias, eps=check_positive("channel_layer_norm", "eps", eps), activation=activation)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    options, rank = bound.options, bound.type.ndim
    spec = ChannelLayerNorm(bound.dims["channels"], rank, bound.dtype, options["eps"], options["activation"])
    return call_spec(bb, spec, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
