"""Layer normalisation over the channels of dense tensors, `R.sparse_ops.channel_layer_norm`."""

from tvm import relax

from tir_kernels.cpu.channel_layer_norm import channel_layer_norm as norm_kernel
from tir_kernels.cpu.vector_math import ACTIVATIONS

from .numbers import check_positive
from .register import call_kernel, check_choice, register_op
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

    x float32 or bfloat16 [B, C, *spatial], as in torch; all sizes but C may be symbolic and 0; weight, bias float32 [C];
    activation one of "none", "relu", "silu", "gelu", "gelu_tanh". Returns the type of x; computed in float32.

    Raises ValueError naming the argument or option that does not fit.
    """
    check_choice("channel_layer_norm", "activation", activation, ACTIVATIONS)
    return _make(x=x, weight=weight, bias=bias, eps=check_positive("channel_layer_norm", "eps", eps), activation=activation)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    options, rank = bound.options, bound.type.ndim
    kernel = norm_kernel(bound.dims["channels"], rank, bound.dtype, options["eps"], options["activation"])
    return call_kernel(bb, kernel, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
