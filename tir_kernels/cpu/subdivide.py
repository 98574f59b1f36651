"""Subdivision of voxels: every row becomes fx * fy * fz children, `coords * factor + offset`.

Children of one voxel follow each other with the offset along z fastest, so the children of row i are the rows from
i * children on; features follow by repeating rows.
"""

import itertools
from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from .coordinate_index import ROW_CHUNK


def naive(coords, factor=(2, 2, 2)):
    """Oracle. coords int32 [N, 4] -> int32 [N * fx * fy * fz, 4]."""
    offsets = np.array([(0, *offset) for offset in itertools.product(*(range(f) for f in factor))])
    children = np.asarray(coords)[:, None] * np.array([1, *factor]) + offsets
    return children.reshape(-1, 4).astype("int32")


@cache
def subdivide(factor: tuple[int, int, int]) -> tvm.tirx.PrimFunc:
    """PrimFunc (coords int32 [N, 4], out int32 [N * fx * fy * fz, 4])."""
    fx, fy, fz = factor
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
