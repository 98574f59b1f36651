"""Subdivision of voxels, `R.sparse_ops.subdivide`."""

from math import prod

from tvm import relax

from tir_kernels.spec.subdivide import Subdivide

from .index import int32, triple
from .register import call_spec, register_op
from .signature import Bound, Signature, coordinates

SIGNATURE = Signature("subdivide", (coordinates(),), options=("factor",))


def subdivide(coords: relax.Expr, factor=2) -> relax.Call:
    """The children of every voxel, coords * factor + offset, offsets with z fastest, children of a voxel together.

    coords int32 [N, 4]; factor an int or three along x, y, z. Returns int32 [N * fx * fy * fz, 4]; child j of row i is row
    i * fx * fy * fz + j. Raises ValueError for other shapes, dtypes or factors.
    """
    return _subdivide(coords=coords, factor=triple("subdivide", "factor", factor, 1))


def _infer(bound: Bound) -> relax.TensorType:
    return int32(bound.dims["n"] * prod(bound.options["factor"]), 4)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    return call_spec(bb, Subdivide(bound.options["factor"]), [bound["coords"]], bound.type)


_subdivide = register_op(SIGNATURE, _legalize, _infer)
