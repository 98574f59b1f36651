"""The union of several coordinate sets, `R.sparse_ops.union`."""

from tvm import relax

from tir_kernels.spec.union import SetRows
from tir_kernels.spec.unique import METHODS

from .index import check_method, emit_tuple, int32, int32_of_rank
from .register import call_spec, register_op
from .signature import Bound, Signature, coordinates, offsets
from .unique import emit_unique

SIGNATURE = Signature("union", (coordinates(), offsets("offsets", "ends")), options=("method",))


def union(coords: relax.Expr, offsets: relax.Expr, method: str = "auto") -> relax.Call:
    """The distinct voxels of P coordinate sets that lie one after the other, and where each set has them.

    coords int32 [N, 4] of all sets; offsets int32 [P + 1]: where each begins, from 0 to N; method as in `unique`. Returns
    (coords int32 [M, 4] ascending, inverse int32 [N], rows int32 [P, M]), with M known only at run time: row i of all sets is
    row inverse[i] of the union, and voxel m is row rows[p, m] of set p, counted from its own first, or -1 where it has none.

    Sums over the union follow by `segment_pool(x, inverse, ...)`, in the order of the sets; what a set has there, with zeros
    elsewhere, by `gather_rows(x, rows[p])`. Raises ValueError for other shapes and dtypes and, from the running module, for the
    first row of a set that repeats another of it, for the first row out of range, and for offsets that do not fit.
    """
    check_method("union", method, METHODS)
    return _make(coords=coords, offsets=offsets, method=method)


def _infer(bound: Bound) -> relax.TupleType:
    return relax.TupleType([int32_of_rank(2), int32(bound.dims["n"]), int32_of_rank(2)])


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    coords, unchecked, rows = emit_unique(bb, bound["coords"], (1, 1, 1), bound.options["method"], int32(bound.dims["n"]))
    shapes = [int32(bound.dims["n"]), int32(bound.dims["ends"] - 1, rows)]
    inverse, rows_of_sets = emit_tuple(bb, call_spec(bb, SetRows(), [unchecked, bound["offsets"]], shapes), 2)
    return relax.Tuple([coords, inverse, rows_of_sets])


_make = register_op(SIGNATURE, _legalize, _infer)
