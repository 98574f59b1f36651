"""Group normalisation of sparse tensors, `R.sparse_ops.group_norm`."""

from collections.abc import Mapping

from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.group_norm import GroupNorm

from .numbers import check_int, check_positive
from .register import call_spec, check_choice, register_op
from .signature import Bound, Signature, features, offsets, parameter

SIGNATURE = Signature(
    "group_norm",
    (
        features("x", "n", "channels"),
        offsets("batch_offsets", "segments"),
        parameter("weight", "channels"),
        parameter("bias", "channels"),
    ),
    options=("groups", "eps", "activation"),
    known=("channels",),
    result=("n", "channels"),
)


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

    x float32, bfloat16 or float16 [N, C]; batch_offsets int32 [B + 1], see the op of that name: mean and variance are those of
    each batch element, which may be empty; weight, bias float32 [C]; groups a divisor of C; activation one of `ACTIVATIONS`.
    Returns dtype of x, [N, C]; computed in float32, accurate for large means.

    Raises ValueError naming the argument or option that does not fit and, from the running module, when the offsets do
    not ascend from 0 to N.
    """
    check_choice("group_norm", "activation", activation, ACTIVATIONS)
    return _make(
        x=x,
        batch_offsets=batch_offsets,
        weight=weight,
        bias=bias,
        groups=check_int("group_norm", "groups", groups, 1),
        eps=check_positive("group_norm", "eps", eps),
        activation=activation,
    )


def check_groups(bound: Bound) -> Mapping:
    """ValueError unless the groups divide the channels; nothing follows for other dimensions."""
    channels, groups = bound.dims["channels"], bound.options["groups"]
    if not channels or channels % groups:
        bound.refuse(f"groups: expected a divisor of {channels} channels, given {groups}")
    return {}


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    options = bound.options
    spec = GroupNorm(bound.dims["channels"], options["groups"], bound.dtype, options["eps"], options["activation"])
    return call_spec(bb, spec, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize, derive=check_groups)
