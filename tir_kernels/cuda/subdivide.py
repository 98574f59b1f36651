"""Subdivision of voxels: a thread a coordinate, so that a warp writes side by side."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..spec.subdivide import Subdivide
from .gpu import Gpu, kernel_name
from .launch import for_each


@cache
def subdivide(spec: Subdivide, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Subdivide`."""
    fx, fy, fz = spec.factor
    children = fx * fy * fz

    @inline
    def write(coords, out, place):
        column: T.let = T.Cast("int32", place % 4)
        child: T.let = T.Cast("int32", place // 4 % children)
        parent: T.let = coords[place // 4 // children, column]
        factor: T.let = T.Select(column == 0, 1, T.Select(column == 1, fx, T.Select(column == 2, fy, fz)))
        offset: T.let = T.Select(
            column == 0, 0, T.Select(column == 1, child // (fy * fz), T.Select(column == 2, child // fz % fy, child % fz))
        )
        out[place // 4, column] = parent * factor + offset

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("subdivide")})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        out = match_buffer(out_, (rows * children, 4), "int32")
        for_each(rows * children * 4, lambda place: write(coords, out, place))

    return kernel
