"""The rows that a mask keeps, `R.sparse_ops.flatnonzero`."""

from tvm import relax

from tir_kernels.spec.flatnonzero import CHUNK, DTYPES, CountNonzero, FillNonzero

from .index import emit_sizes, emit_tuple, int32, int32_of_rank, int64
from .register import call_spec, register_op
from .signature import Argument, Bound, Kind, Signature

SIGNATURE = Signature("flatnonzero", (Argument("mask", Kind.MASK, ("n",), DTYPES),))


def flatnonzero(mask: relax.Expr) -> relax.Call:
    """The rows of the entries that are not zero, ascending, as `numpy.flatnonzero`: pruning, with `gather_rows` behind it.

    mask bool, int8, uint8 or int32 [N]. Returns int32 [M], M known only at run time: `match_cast` it to name it. Raises
    ValueError for other shapes and dtypes.
    """
    return _make(mask=mask)


def _infer(bound: Bound) -> relax.TensorType:
    return int32_of_rank(1)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    mask, chunks = bound["mask"], (bound.dims["n"] + (CHUNK - 1)) // CHUNK
    before, count = emit_tuple(bb, call_spec(bb, CountNonzero(bound.dtype), [mask], [int64(chunks), int64(1)]), 2)
    (rows,) = emit_sizes(bb, count, 1)
    return call_spec(bb, FillNonzero(bound.dtype), [mask, before], int32(rows))


_make = register_op(SIGNATURE, _legalize, _infer)
