"""Subdivision of voxels."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.subdivide import Subdivide
from .coordinate_index import ROW_CHUNK
from .isa import Isa


@cache
def subdivide(spec: Subdivide, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Subdivide`."""
    fx, fy, fz = spec.factor
    children = fx * fy * fz

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "subdivide"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        out = match_buffer(out_, (rows * children, 4), "int32")
        for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):
            for i, x, y, z in T.grid(T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK), fx, fy, fz):
                row: T.let = chunk * ROW_CHUNK + i
                child: T.let = row * children + (x * fy + y) * fz + z
                out[child, 0] = coords[row, 0]
                out[child, 1] = coords[row, 1] * fx + x
                out[child, 2] = coords[row, 2] * fy + y
                out[child, 3] = coords[row, 3] * fz + z

    return kernel
