"""Group normalisation of dense tensors, `R.sparse_ops.dense_group_norm`."""

from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.dense_group_norm import DenseGroupNorm

from .register import call_spec, check_choice, check_tensor, register_op
from .shapes import check_int, check_positive, float_shape, known


def dense_group_norm(
    x: relax.Expr, weight: relax.Expr, bias: relax.Expr, groups: int, eps: float = 1e-5, activation: str = "none"
) -> relax.Call:
    """`activation((x - mean) / sqrt(variance + eps) * weight + bias)`, over all sites and the channels of a group.

    x float32 or bfloat16 [B, C, *spatial], as in torch; all sizes but C may be symbolic and 0; weight, bias float32 [C];
    groups a divisor of C; activation one of `ACTIVATIONS`. Returns the type of x; computed in float32, accurate for large
    means. For sparse tensors see `group_norm`.

    Raises ValueError naming the argument or option that does not fit.
    """
    check_choice("dense_group_norm", "activation", activation, ACTIVATIONS)
    return _make(
        x,
        weight,
        bias,
        groups=check_int("dense_group_norm", "groups", groups, 1),
        eps=check_positive("dense_group_norm", "eps", eps),
        activation=activation,
    )


def _infer(call: relax.Call) -> relax.TensorType:
    shape = float_shape(call, 0, "x", 2)
    (channels,) = known(call, "x", [shape[1]])
    check_tensor(call, 1, "weight", (channels,), ("float32",))
    check_tensor(call, 2, "bias", (channels,), ("float32",))
    groups = int(call.attrs["groups"])
    if not channels or channels % groups:
        raise ValueError(f"sparse_ops.dense_group_norm: groups: expected a divisor of {channels} channels, given {groups}")
    return relax.TensorType(shape, str(call.args[0].ty.dtype))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    spec = DenseGroupNorm(
        int(call.ty.shape.values[1]),
        int(call.attrs["groups"]),
        call.ty.ndim,
        str(call.ty.dtype),
        float(call.attrs["eps"]),
        str(call.attrs["activation"]),
    )
    return call_spec(bb, spec, call.args, call.ty)


_make = register_op("dense_group_norm", _infer, _legalize)
