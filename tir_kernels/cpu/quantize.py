"""Voxels of points, and what `trilinear` shares with it: what it refuses, and the points that have no voxel."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_GRID_NUMBER, RAISE_POINT
from ..integers import divide
from ..points import floor, grid_numbers, is_beyond, position
from ..script import drop_parameters, inline
from ..spec.coordinate_index import BATCH_LIMIT
from ..spec.quantize import Quantize
from ..vector_math import bind
from .guards import check_batch_index
from .isa import Isa

CHUNK = 1024  # points of one task


def check_grid_numbers(voxel_size, origin):
    """Emit: raise unless the voxel size is above 0 and finite, and the origin finite."""
    for argument, axis, value, bad in grid_numbers(voxel_size, origin):
        with T.If(bad), T.Then():
            T.evaluate(T.call_packed(RAISE_GRID_NUMBER, argument, axis, T.Cast("float64", value)))


def report_strays(strays, points, rows, voxel_size, origin):
    """Emit: raise for the first point without a voxel, if one of the chunks of CHUNK points says that it has some."""

    @inline
    def report(axis, row):
        if is_beyond(floor(bind(position(points, row, axis, voxel_size, origin)))):
            T.evaluate(
                T.call_packed(
                    RAISE_POINT,
                    row,
                    T.int32(axis),
                    T.Cast("float64", points[row, axis]),
                    T.Cast("float64", position(points, row, axis, voxel_size, origin)),
                )
            )

    def report_axes(row):
        for axis in range(3):
            report(axis, row)

    @inline
    def look(strays, rows):
        for chunk in range((rows + CHUNK - 1) // CHUNK):
            if strays[chunk] != 0:
                for i in range(T.min(T.int64(CHUNK), rows - chunk * CHUNK)):
                    report_axes(chunk * CHUNK + i)

    look(strays, rows)


@cache
def quantize(spec: Quantize, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Quantize`."""
    stride, has_index = spec.stride, spec.has_index

    @inline
    def along(axis, points, row, voxel_size, origin, coords, stray):
        cell = T.meta_var(bind(floor(bind(position(points, row, axis, voxel_size, origin)))))
        coords[row, axis + 1] = divide(cell, stride[axis])
        stray[0] = stray[0] | T.Cast("int32", is_beyond(cell))

    def all_axes(*buffers):
        for axis in range(3):
            along(axis, *buffers)

    @script.prim_func(s_tir=True)
    def kernel(points_: T.handle, voxel_size_: T.handle, batch_index_: T.handle, origin_: T.handle, coords_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "quantize"})
        n = T.int64()
        points = match_buffer(points_, (n, 3), "float32")
        voxel_size = match_buffer(voxel_size_, (3,), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        origin = match_buffer(origin_, (3,), "float32")
        coords = match_buffer(coords_, (n, 4), "int32")
        strays = T.alloc_buffer(((n + CHUNK - 1) // CHUNK,), "int32")
        check_grid_numbers(voxel_size, origin)
        if has_index:
            check_batch_index(batch_index, n, BATCH_LIMIT)
        for chunk in T.parallel((n + CHUNK - 1) // CHUNK):
            stray = T.alloc_buffer((1,), "int32")
            stray[0] = T.int32(0)
            for i in range(T.min(T.int64(CHUNK), n - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                coords[row, 0] = batch_index[row] if has_index else T.int32(0)
                all_axes(points, row, voxel_size, origin, coords, stray)
            strays[chunk] = stray[0]
        report_strays(strays, points, n, voxel_size, origin)

    return kernel if has_index else drop_parameters(kernel, "batch_index")
