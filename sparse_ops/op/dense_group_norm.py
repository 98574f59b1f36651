"""Group normalisation of dense tensors, `R.sparse_ops.dense_group_norm`."""

from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.dense_group_norm import DenseGroupNorm

from .group_norm import check_groups
from .numbers import check_int, check_positive
from .register import call_spec, check_choice, register_op
from .signature import Bound, Signature, features, parameter

SIGNATURE = Signature(
    "dense_group_norm",
    (features("x", "batch", "channels", ...), parameter("weight", "channels"), parameter("bias", "channels")),
    options=("groups", "eps", "activation"),
    known=("channels",),
    result=("batch", "channels", ...),
)


def dense_group_norm(
    x: relax.Expr, weight: relax.Expr, bias: relax.Expr, groups: int, eps: float = 1e-5, activation: str = "none"
) -> relax.Call:
    """`activation((x - mean) / sqrt(variance + eps) * weight + bias)`, over all sites and the channels of a group.

    x float32, bfloat16 or float16 [B, C, *spatial], as in torch; all sizes but C may be symbolic and 0; weight, bias float32
    [C]; groups a divisor of C; activation one of `ACTIVATIONS`. Returns the type of x; computed in float32, accurate for large
    means. For sparse tensors see `group_norm`.

    Raises ValueError naming the argument or option that does not fit.
    """
    check_choice("dense_group_norm", "activation", activation, ACTIVATIONS)
    return _make(
        x=x,
        weight=weight,
        bias=bias,
        groups=check_int("dense_group_norm", "groups", groups, 1),
        eps=check_positive("dense_group_norm", "eps", eps),
        activation=activation,
    )


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    options, rank = bound.options, bound.type.ndim
    spec = DenseGroupNorm(bound.dims["channels"], options["groups"], rank, bound.dtype, options["eps"], options["activation"])
    return call_spec(bb, spec, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize, derive=check_groups)
