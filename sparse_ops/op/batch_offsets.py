"""Where the rows of each batch element start, `R.sparse_ops.batch_offsets`."""

import tvm
from tvm import relax

from tir_kernels.spec.batch_offsets import BatchOffsets

from .index import check_coords, int32
from .register import call_spec, register_op
from .shapes import check_int


def batch_offsets(coords: relax.Expr, batch) -> relax.Call:
    """Offsets int32 [batch + 1]: the rows of batch element b are offsets[b] to offsets[b + 1] of coords int32 [N, 4].

    batch: the number of batch elements, an int of at least 1 or a symbolic dimension; elements without rows are legal.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row whose batch
    index is below that of the row before it or is not in 0 to batch - 1.
    """
    if not isinstance(batch, tvm.ir.Expr):
        batch = tvm.tirx.IntImm("int64", check_int("batch_offsets", "batch", batch, 1))
    return _make(coords, relax.ShapeExpr([batch]))


def _infer(call: relax.Call) -> relax.TensorType:
    check_coords(call, 0)
    return int32(call.args[1].values[0] + 1)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return call_spec(bb, BatchOffsets(), call.args[:1], call.ty)


_make = register_op("batch_offsets", _infer, _legalize)
