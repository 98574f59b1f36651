"""Layer normalisation over the channels of dense tensors, `R.sparse_ops.channel_layer_norm`."""

from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.channel_layer_norm import ChannelLayerNorm

from .register import call_spec, check_choice, check_tensor, register_op
from .shapes import check_positive, float_shape, known


def channel_layer_norm(
    x: relax.Expr, weight: relax.Expr, bias: relax.Expr, eps: float = 1e-5, activation: str = "none"
) -> relax.Call:
    """`activation((x - mean) / sqrt(variance + eps) * weight + bias)`, over the channels at every site by itself.

    x float32 or bfloat16 [B, C, *spatial], as in torch; all sizes but C may be symbolic and 0; weight, bias float32 [C];
    activation one of `ACTIVATIONS`. Returns the type of x; computed in float32.

    Raises ValueError naming the argument or option that does not fit.
    """
    check_choice("channel_layer_norm", "activation", activation, ACTIVATIONS)
    return _make(x, weight, bias, eps=check_positive("channel_layer_norm", "eps", eps), activation=activation)


def _infer(call: relax.Call) -> relax.TensorType:
    shape = float_shape(call, 0, "x", 2)
    channels = known(call, "x", [shape[1]])
    check_tensor(call, 1, "weight", channels, ("float32",))
    check_tensor(call, 2, "bias", channels, ("float32",))
    return relax.TensorType(shape, str(call.args[0].ty.dtype))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    spec = ChannelLayerNorm(
        int(call.ty.shape.values[1]), call.ty.ndim, str(call.ty.dtype), float(call.attrs["eps"]), str(call.attrs["activation"])
    )
    return call_spec(bb, spec, call.args, call.ty)


_make = register_op("channel_layer_norm", _infer, _legalize)
