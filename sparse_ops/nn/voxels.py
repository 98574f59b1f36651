"""Fewer voxels, or those of several tensors: pruning, intersection, sums and concatenation over a union."""

from functools import reduce

import tvm
from tvm import relax, tirx
from tvm.relax.frontend import nn

from .. import op
from .carrier import Rows, Sites, SymbolicSparseTensor, cast_shape, check_sites, check_sparse, dimension, emit, emit_fields


def prune(x: SymbolicSparseTensor, mask: nn.Tensor) -> SymbolicSparseTensor:
    """The voxels that a mask keeps, in their order: x [N, C], mask bool, int8, uint8 or int32 [N] -> [M, C].

        keep = self.classify(x).feats > 0        # [N, 1] of bool
        x = prune(x, keep.reshape(x.sites.rows))

    M is known at run time, and may be 0; the new sites have as many batch elements. ValueError for another shape or dtype of
    the mask, whose length must have the name of the rows of x.
    """
    check_sparse("prune", x)
    rows = x.sites.rows
    if not isinstance(mask, nn.Tensor) or mask.ndim != 1 or not tvm.sym.Analyzer().can_prove(mask.shape[0] == rows):
        raise ValueError(f"prune: mask: expected a tensor [{rows}], one entry for each row of x, given {mask!r}")
    index = emit_rows(op.flatnonzero(mask._expr))
    sites = Sites(_gather(x.coords, index), x.sites.batch)
    return x.moved(_gather(x.feats, index), sites)


def intersection(x: SymbolicSparseTensor, sites: Sites) -> SymbolicSparseTensor:
    """The voxels of x [N, C] that other sites have too, in the order of x: [M, C], M known at run time."""
    check_sparse("intersection", x)
    check_sites("intersection", sites)
    found = emit(op.lookup(sites.coords._expr, x.coords._expr), "found")
    return prune(x, emit(relax.op.greater_equal(found._expr, relax.const(0, "int32")), "mask"))


def sparse_add(*tensors: SymbolicSparseTensor) -> SymbolicSparseTensor:
    """The sum of tensors over the union of their voxels, which ascend in (batch, x, y, z): [N1, C], [N2, C], ... -> [M, C].

    Values are added in the order of the tensors, in float32. M is known at run time. ValueError for no tensor, and for channels
    or dtypes that differ; a tensor with two rows at one voxel is refused by the running module.
    """
    _check_tensors("sparse_add", tensors)
    first = tensors[0]
    for i, x in enumerate(tensors):
        if x.channels != first.channels:
            raise ValueError(f"sparse_add: tensors[{i}]: expected {first.channels} channels, given {x.channels}")
    sites, inverse, _ = _union(tensors)
    feats = emit(relax.op.concat([x.feats._expr for x in tensors], axis=0), "feats")
    call = op.segment_pool(feats._expr, inverse._expr, sites.coords._expr, mode="sum")
    return first.moved(emit(call, "sum"), sites)


def sparse_cat(*tensors: SymbolicSparseTensor) -> SymbolicSparseTensor:
    """Features side by side on the union of the voxels, which ascend in (batch, x, y, z), zeros where a tensor has none.

    [N1, C1], [N2, C2], ... -> [M, C1 + C2 + ...], M known at run time. ValueError for no tensor and for dtypes that differ; a
    tensor with two rows at one voxel is refused by the running module. On the same sites `concat` needs no search.
    """
    _check_tensors("sparse_cat", tensors)
    sites, _, rows = _union(tensors)
    parts = [_gather(x.feats, index)._expr for x, index in zip(tensors, rows, strict=True)]
    return tensors[0].moved(emit(relax.op.concat(parts, axis=1), "cat"), sites)


def emit_rows(call: relax.Call) -> nn.Tensor:
    """Emit a call that returns row numbers, as many as only the data tells."""
    return cast_shape(relax.BlockBuilder.current().emit(call), (dimension("rows"),))


def _gather(x: nn.Tensor, index: nn.Tensor) -> nn.Tensor:
    return emit(op.gather_rows(x._expr, index._expr), "rows")


def _check_tensors(owner: str, tensors: tuple) -> None:
    if not tensors:
        raise ValueError(f"{owner}: tensors: expected at least one SymbolicSparseTensor, given none")
    for i, x in enumerate(tensors):
        if not isinstance(x, SymbolicSparseTensor):
            raise ValueError(f"{owner}: tensors[{i}]: expected a SymbolicSparseTensor, given {x!r}")
        if x.feats.dtype != tensors[0].feats.dtype:
            raise ValueError(f"{owner}: tensors[{i}]: expected {tensors[0].feats.dtype}, given {x.feats.dtype}")


def _union(tensors: tuple[SymbolicSparseTensor, ...]) -> tuple[Sites, nn.Tensor, list[nn.Tensor]]:
    """The sites of all tensors, the row there of each of their rows, one tensor after the other, and for each tensor its row,
    or -1, at each site."""
    ends: list[Rows] = [tirx.IntImm("int64", 0)]
    for x in tensors:
        ends.append(ends[-1] + x.sites.rows)
    shape = cast_shape(relax.BlockBuilder.current().emit(relax.op.shape_to_tensor(relax.ShapeExpr(ends))), (len(ends),))
    offsets = emit(relax.op.astype(shape._expr, "int32"), "offsets")
    every = emit(relax.op.concat([x.coords._expr for x in tensors], axis=0), "coords")
    coords, inverse, rows = emit_fields(op.union(every._expr, offsets._expr))
    count = dimension("rows")
    sites = Sites(cast_shape(coords, (count, 4)), reduce(_larger, (x.sites.batch for x in tensors)))
    rows = cast_shape(rows, (len(tensors), count))
    if len(tensors) == 1:
        parts = [rows]
    else:
        parts = [emit(relax.op.strided_slice(rows._expr, [0], [i], [i + 1])) for i in range(len(tensors))]
    return sites, nn.Tensor(_expr=inverse), [emit(relax.op.reshape(part._expr, (count,))) for part in parts]


def _larger(a: Rows, b: Rows) -> Rows:
    """The larger of two numbers of batch elements."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return a if tvm.sym.Analyzer().can_prove(a == b) else tirx.max(a, b)
