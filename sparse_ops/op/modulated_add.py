"""Residual addition with a gate, `R.sparse_ops.modulated_add`."""

from tvm import relax

from tir_kernels.spec.modulated_add import ModulatedAdd

from .register import call_spec, register_op
from .signature import Bound, Signature, Table, features, index, parameter

SIGNATURE = Signature(
    "modulated_add",
    (
        features("x", "n", "channels"),
        features("y", "n", "channels", dtype="x"),
        parameter("gate", Table("batch", "batch_index"), "channels"),
        index("batch_index", "n", optional=True),
    ),
    known=("channels",),
    result=("n", "channels"),
)


def modulated_add(x: relax.Expr, y: relax.Expr, gate: relax.Expr, batch_index: relax.Expr | None = None) -> relax.Call:
    """`x + y * gate[b]` by rows.

    x, y float32, bfloat16 or float16, of one dtype, [N, C]; gate float32 [B, C], of which row i takes b = batch_index[i], int32
    [N], or the only one if no batch_index is given (then B = 1). Returns dtype of x, [N, C]; computed in float32.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first entry of
    batch_index that is not in 0 to B - 1.
    """
    return _make(x=x, y=y, gate=gate, batch_index=batch_index)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = ModulatedAdd(bound.dims["channels"], bound.dtype, bound.has("batch_index"))
    return call_spec(bb, spec, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
