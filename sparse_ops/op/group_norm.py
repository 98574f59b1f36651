"""Group normalisation of sparse tensors, `R.sparse_ops.group_norm`."""

from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.group_norm import GroupNorm

from .register import FLOATS, call_spec, check_choice, check_tensor, register_op
from .shapes import check_int, check_positive, known


def group_norm(
    x: relax.Expr,
    batch_offsets: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr,
    groups: int,
    eps: float = 1e-5,
    activation: str = "none",
) -> relax.Call:
    """`activation((x - mean) / sqrt(variance + eps) * weight + bias)`, over the voxels and channels of a group.

    x float32 or bfloat16 [N, C]; batch_offsets int32 [B + 1], see the op of that name: mean and variance are those of each
    batch element, which may be empty; weight, bias float32 [C]; groups a divisor of C; activation one of `ACTIVATIONS`.
    Returns dtype of x, [N, C]; computed in float32, accurate for large means.

    Raises ValueError naming the argument or option that does not fit and, from the running module, when the offsets do
    not ascend from 0 to N.
    """
    check_choice("group_norm", "activation", activation, ACTIVATIONS)
    return _make(
        x,
        batch_offsets,
        weight,
        bias,
        groups=check_int("group_norm", "groups", groups, 1),
        eps=check_positive("group_norm", "eps", eps),
        activation=activation,
    )


def _infer(call: relax.Call) -> relax.TensorType:
    rows, channels = check_tensor(call, 0, "x", (None, None), FLOATS)
    (channels,) = known(call, "x", [channels])
    check_tensor(call, 1, "batch_offsets", (None,), ("int32",))
    check_tensor(call, 2, "weight", (channels,), ("float32",))
    check_tensor(call, 3, "bias", (channels,), ("float32",))
    groups = int(call.attrs["groups"])
    if channels % groups:
        raise ValueError(f"sparse_ops.group_norm: groups: expected a divisor of {channels} channels, given {groups}")
    return relax.TensorType([rows, channels], str(call.args[0].ty.dtype))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = call.attrs
    spec = GroupNorm(
        int(call.ty.shape.values[1]),
        int(attrs["groups"]),
        str(call.ty.dtype),
        float(attrs["eps"]),
        str(attrs["activation"]),
    )
    return call_spec(bb, spec, call.args, call.ty)


_make = register_op("group_norm", _infer, _legalize)
