"""Rows of given coordinates, `R.sparse_ops.lookup`."""

from tvm import relax

from tir_kernels.spec.coordinate_index import Lookup

from .index import check_method, index_of, int32, returned, with_index
from .register import call_spec, register_op
from .signature import Bound, Signature, coordinates

SIGNATURE = Signature("lookup", (coordinates(), coordinates("queries", "m")), options=("method",), indexed="coords")


def lookup(coords: relax.Expr, queries: relax.Expr, method: str = "auto") -> relax.Call:
    """The row of `coords` that equals each query, or -1.

    coords int32 [N, 4], no row twice; queries int32 [M, 4], anything; method "grid", "hash" or "auto". Returns int32 [M].
    Raises ValueError for other shapes and dtypes and, from the running module, for the first row of coords that repeats
    another or is out of range.
    """
    check_method("lookup", method)
    return _lookup(coords=coords, queries=queries, method=method)


def _infer(bound: Bound) -> relax.Type:
    return returned(bound, int32(bound.dims["m"]))


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    index = index_of(bb, bound)
    rows = call_spec(bb, Lookup(), [bound["queries"], *index], int32(bound.dims["m"]))
    return with_index(bb, bound, rows, index)


_lookup = register_op(SIGNATURE, _legalize, _infer)
