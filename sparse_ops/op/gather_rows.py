"""Row selection, `R.sparse_ops.gather_rows`."""

from tvm import relax

from tir_kernels.spec.gather_rows import GatherRows

from .register import FLOATS, call_spec, check_tensor, register_op
from .shapes import known


def gather_rows(x: relax.Expr, index: relax.Expr) -> relax.Call:
    """`x[index]`, with zeros where the index is -1; with the inverse of a downsampling, nearest upsampling.

    x float32, bfloat16 or int32 [N, C]; index int32 [M], entries -1 to N - 1. Returns dtype of x, [M, C].

    Raises ValueError naming the argument whose dtype or shape does not fit and, from the running module, for the first
    entry of the index that is out of range.
    """
    return _make(x, index)


def _infer(call: relax.Call) -> relax.TensorType:
    _, channels = check_tensor(call, 0, "x", (None, None), (*FLOATS, "int32"))
    known(call, "x", [channels])
    (rows,) = check_tensor(call, 1, "index", (None,), ("int32",))
    return relax.TensorType([rows, channels], str(call.args[0].ty.dtype))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return call_spec(bb, GatherRows(int(call.ty.shape.values[1]), str(call.ty.dtype)), call.args, call.ty)


_make = register_op("gather_rows", _infer, _legalize)
