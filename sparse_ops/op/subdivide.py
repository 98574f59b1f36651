"""Subdivision of voxels, `R.sparse_ops.subdivide`."""

from math import prod

from tvm import relax

from tir_kernels.spec.subdivide import Subdivide

from .index import check_coords, int32, triple
from .register import call_spec, register_op


def subdivide(coords: relax.Expr, factor=2) -> relax.Call:
    """The children of every voxel, coords * factor + offset, offsets with z fastest, children of a voxel together.

    coords int32 [N, 4]; factor an int or three along x, y, z. Returns int32 [N * fx * fy * fz, 4]; child j of row i is row
    i * fx * fy * fz + j. Raises ValueError for other shapes, dtypes or factors.
    """
    return _subdivide(coords, factor=list(triple("subdivide", "factor", factor, 1)))


def _infer(call: relax.Call) -> relax.TensorType:
    rows = check_coords(call, 0)
    children = prod(int(f) for f in call.attrs["factor"])
    return int32(rows * children, 4)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return call_spec(bb, Subdivide(tuple(int(f) for f in call.attrs["factor"])), [call.args[0]], call.ty)


_subdivide = register_op("subdivide", _infer, _legalize)
