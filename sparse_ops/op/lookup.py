"""Rows of given coordinates, `R.sparse_ops.lookup`."""

from tvm import relax

from tir_kernels.spec.coordinate_index import Lookup

from .index import check_coords, check_method, emit_index, int32
from .register import call_spec, register_op


def lookup(coords: relax.Expr, queries: relax.Expr, method: str = "auto") -> relax.Call:
    """The row of `coords` that equals each query, or -1.

    coords int32 [N, 4], no row twice; queries int32 [M, 4], anything; method "grid", "hash" or "auto". Returns int32 [M].
    Raises ValueError for other shapes and dtypes and, from the running module, for the first row of coords that repeats
    another or is out of range.
    """
    check_method("lookup", method)
    return _lookup(coords, queries, method=method)


def _infer(call: relax.Call) -> relax.TensorType:
    check_coords(call, 0)
    return int32(check_coords(call, 1, "queries"))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    coords, queries = call.args
    index = emit_index(bb, coords, (0, 0, 0), str(call.attrs["method"]))
    return call_spec(bb, Lookup(), [queries, *index], call.ty)


_lookup = register_op("lookup", _infer, _legalize)
