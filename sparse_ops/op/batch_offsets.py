"""Where the rows of each batch element start, `R.sparse_ops.batch_offsets`."""

import tvm
from tvm import relax

from tir_kernels.spec.batch_offsets import BatchOffsets

from .index import int32
from .numbers import check_int
from .register import call_spec, register_op
from .signature import Argument, Bound, Kind, Signature, coordinates

SIGNATURE = Signature("batch_offsets", (coordinates(), Argument("batch", Kind.SHAPE)))


def batch_offsets(coords: relax.Expr, batch) -> relax.Call:
    """Offsets int32 [batch + 1]: the rows of batch element b are offsets[b] to offsets[b + 1] of coords int32 [N, 4].

    batch: the number of batch elements, an int of at least 1 or a symbolic dimension; elements without rows are legal.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row whose batch
    index is below that of the row before it or is not in 0 to batch - 1.
    """
    if not isinstance(batch, tvm.ir.Expr):
        batch = tvm.tirx.IntImm("int64", check_int("batch_offsets", "batch", batch, 1))
    return _make(coords=coords, batch=relax.ShapeExpr([batch]))


def _infer(bound: Bound) -> relax.TensorType:
    return int32(bound["batch"].values[0] + 1)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    return call_spec(bb, BatchOffsets(), [bound["coords"]], bound.type)


_make = register_op(SIGNATURE, _legalize, _infer)
