"""Subdivision of voxels, `R.sparse_ops.subdivide`."""

from math import prod

from tvm import relax

from tir_kernels.spec.subdivide import Subdivide

from .index import int32, triple
from .memory import Of, call_granted, emit_grant
from .register import register_op
from .signature import Bound, Signature, coordinates

MOST_CHILDREN = 2**31 - 1

SIGNATURE = Signature("subdivide", (coordinates(),), options=("factor",))


def subdivide(coords: relax.Expr, factor=2) -> relax.Call:
    """The children of every voxel, coords * factor + offset, offsets with z fastest, children of a voxel together.

    coords int32 [N, 4]; factor an int or three along x, y, z. Returns int32 [N * fx * fy * fz, 4]; child j of row i is row
    i * fx * fy * fz + j. Raises ValueError for other shapes, dtypes or factors, and, from the running module, for children that
    do not fit into memory.
    """
    factor = triple("subdivide", "factor", factor, 1)
    if prod(factor) > MOST_CHILDREN:
        raise ValueError(f"sparse_ops.subdivide: factor: expected at most {MOST_CHILDREN} children a voxel, given {factor!r}")
    return _subdivide(coords=coords, factor=factor)


def _infer(bound: Bound) -> relax.TensorType:
    return int32(bound.dims["n"] * prod(bound.options["factor"]), 4)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    granted = emit_grant(bb, "subdivide", ("int32", [Of(bound["coords"]), prod(bound.options["factor"]), 4]))
    return call_granted(bb, Subdivide(bound.options["factor"]), [bound["coords"]], granted, bound.type)


_subdivide = register_op(SIGNATURE, _legalize, _infer)
