"""Unique and downsampled coordinates, `R.sparse_ops.unique`."""

import tvm
from tvm import relax

from tir_kernels.spec.coordinate_index import PLAN_SIZE
from tir_kernels.spec.unique import METHODS, FillUnique, PlanUnique, RankUnique

from .index import check_method, emit_sizes, emit_tuple, int32, int32_of_rank, int64, triple
from .register import call_spec, register_op
from .signature import Bound, Signature, coordinates

SIGNATURE = Signature("unique", (coordinates(),), options=("factor", "method"))


def unique(coords: relax.Expr, method: str = "auto") -> relax.Call:
    """The distinct rows of coords int32 [N, 4], ascending, as `torch.unique(dim=0, return_inverse=True)`.

    Returns (coords int32 [M, 4], inverse int32 [N]) with unique[inverse] == coords; M is known only at run time. method:
    "grid", "sort" or "auto"; all give the same bits. Raises ValueError for other shapes and dtypes and, from the running
    module, for the first row out of range (batch 0 to 4095, x, y, z -32768 to 32767).
    """
    return downsample(coords, 1, method)


def downsample(coords: relax.Expr, factor=2, method: str = "auto") -> relax.Call:
    """The distinct voxels of coords int32 [N, 4] after floor division of x, y, z by `factor` (an int or three).

    Returns and raises as `unique`. Features follow by `segment_pool(x, inverse, ...)`, and come back by
    `gather_rows(x, inverse)`.
    """
    check_method("downsample", method, METHODS)
    return _unique(coords=coords, factor=triple("downsample", "factor", factor, 1), method=method)


def _infer(bound: Bound) -> relax.TupleType:
    return relax.TupleType([int32_of_rank(2), int32(bound.dims["n"])])


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    options = bound.options["factor"], bound.options["method"]
    return relax.Tuple(list(emit_unique(bb, bound["coords"], *options, bound.type.fields[1])[:2]))


def emit_unique(
    bb: relax.BlockBuilder, coords: relax.Expr, factor: tuple[int, int, int], method: str, inverse_type: relax.Type
) -> tuple[relax.Expr, relax.Expr, tvm.tirx.Var]:
    """(distinct coordinates, inverse, the number of the first)."""
    plan, size = emit_tuple(bb, call_spec(bb, PlanUnique(factor, method), [coords], [int64(PLAN_SIZE), int64(2)]), 2)
    cells, entries = emit_sizes(bb, size, 2)
    out = [int32(cells), int64(entries), inverse_type, int64(1)]
    _, _, inverse, count = emit_tuple(bb, call_spec(bb, RankUnique(factor), [coords, plan], out), 4)
    (rows,) = emit_sizes(bb, count, 1)
    return bb.emit(call_spec(bb, FillUnique(factor), [coords, inverse], int32(rows, 4))), inverse, rows


_unique = register_op(SIGNATURE, _legalize, _infer)
