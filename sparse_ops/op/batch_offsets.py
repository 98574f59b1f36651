"""Where the rows of each batch element start, `R.sparse_ops.batch_offsets`."""

from tvm import relax

from tir_kernels.spec.batch_offsets import BatchOffsets

from .index import dimensions, int32
from .memory import call_granted, emit_grant
from .register import register_op
from .signature import Bound, Signature, coordinates, extents

SIGNATURE = Signature("batch_offsets", (coordinates(), extents("batch", "batch")))


def batch_offsets(coords: relax.Expr, batch) -> relax.Call:
    """Offsets int32 [batch + 1]: the rows of batch element b are offsets[b] to offsets[b + 1] of coords int32 [N, 4].

    batch: the number of batch elements, an int of at least 1 or a symbolic dimension; elements without rows are legal.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row whose batch
    index is below that of the row before it or is not in 0 to batch - 1, and for offsets that do not fit into memory.
    """
    return _make(coords=coords, batch=dimensions("batch_offsets", "batch", batch, 1, count=1))


def _infer(bound: Bound) -> relax.TensorType:
    return int32(bound.dims["batch"] + 1)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    granted = emit_grant(bb, "batch_offsets", ("int32", [bound.dims["batch"]]))
    return call_granted(bb, BatchOffsets(), [bound["coords"]], granted, bound.type)


_make = register_op(SIGNATURE, _legalize, _infer)
