"""Residual addition with a gate, `R.sparse_ops.modulated_add`."""

from tvm import relax

from tir_kernels.spec.modulated_add import ModulatedAdd

from .register import FLOATS, call_spec, check_tensor, register_op
from .shapes import known


def modulated_add(x: relax.Expr, y: relax.Expr, gate: relax.Expr, batch_index: relax.Expr | None = None) -> relax.Call:
    """`x + y * gate[b]` by rows.

    x, y float32 or bfloat16, of one dtype, [N, C]; gate float32 [B, C], of which row i takes b = batch_index[i], int32
    [N], or the only one if no batch_index is given (then B = 1). Returns dtype of x, [N, C]; computed in float32.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first entry of
    batch_index that is not in 0 to B - 1.
    """
    return _make(x, y, gate, *([] if batch_index is None else [batch_index]))


def _infer(call: relax.Call) -> relax.TensorType:
    rows, channels = check_tensor(call, 0, "x", (None, None), FLOATS)
    known(call, "x", [channels])
    dtype = str(call.args[0].ty.dtype)
    check_tensor(call, 1, "y", (rows, channels), (dtype,))
    has_index = len(call.args) == 4
    check_tensor(call, 2, "gate", (None if has_index else 1, channels), ("float32",))
    if has_index:
        check_tensor(call, 3, "batch_index", (rows,), ("int32",))
    return relax.TensorType([rows, channels], dtype)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    spec = ModulatedAdd(int(call.ty.shape.values[1]), str(call.ty.dtype), len(call.args) == 4)
    return call_spec(bb, spec, call.args, call.ty)


_make = register_op("modulated_add", _infer, _legalize)
