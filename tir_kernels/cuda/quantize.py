"""Voxels of points, a thread a point, and what `trilinear` shares with it: what it refuses."""

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
from .gpu import Gpu, kernel_name
from .guards import check_batch_index, match_status, refuse_first, report, reporting
from .launch import for_each


def check_points(status, points, rows, voxel_size, batch_index, origin) -> None:
    """Emit: report a voxel size and an origin that are no numbers for a grid, batch indices, and points without a voxel.

    `batch_index`: a buffer, or None.
    """

    def report_numbers():
        for argument, axis, value, bad in grid_numbers(voxel_size, origin):
            with T.If(bad), T.Then():
                report(status, RAISE_GRID_NUMBER, argument, axis, value)

    @inline
    def check_numbers():
        with T.launch_thread("blockIdx.x", 1):
            T.launch_thread("threadIdx.x", 1)
            report_numbers()

    def of_axis(place, values):
        """The value of the axis of a place, of one for each axis."""
        axis = place % 3
        return T.Select(axis == 0, values[0], T.Select(axis == 1, values[1], values[2]))

    def position_of(place):
        size, start = ([of_all[axis] for axis in range(3)] for of_all in (voxel_size, origin))
        return (points[place // 3, place % 3] - of_axis(place, start)) / of_axis(place, size)

    def arguments(place):
        return place // 3, T.Cast("int32", place % 3), points[place // 3, place % 3], position_of(place)

    check_numbers()
    if batch_index is not None:
        check_batch_index(status, batch_index, rows, BATCH_LIMIT)
    refuse_first(status, rows * 3, lambda place: is_beyond(bind(floor(bind(position_of(place))))), RAISE_POINT, arguments)


@cache
def quantize(spec: Quantize, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Quantize`."""
    stride, has_index = spec.stride, spec.has_index

    @inline
    def along(axis, points, row, voxel_size, origin, coords):
        cell = T.meta_var(bind(floor(bind(position(points, row, axis, voxel_size, origin)))))
        coords[row, axis + 1] = divide(cell, stride[axis])

    @inline
    def write(points, row, voxel_size, batch_index, origin, coords):
        coords[row, 0] = batch_index[row] if has_index else T.int32(0)
        along(0, points, row, voxel_size, origin, coords)
        along(1, points, row, voxel_size, origin, coords)
        along(2, points, row, voxel_size, origin, coords)

    @script.prim_func(s_tir=True)
    def kernel(
        points_: T.handle,
        voxel_size_: T.handle,
        batch_index_: T.handle,
        origin_: T.handle,
        status_: T.handle,
        coords_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("quantize")})
        n = T.int64()
        points = match_buffer(points_, (n, 3), "float32")
        voxel_size = match_buffer(voxel_size_, (3,), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        origin = match_buffer(origin_, (3,), "float32")
        status = T.meta_var(match_status(status_))
        coords = match_buffer(coords_, (n, 4), "int32")
        check_points(status, points, n, voxel_size, batch_index if has_index else None, origin)
        for_each(n, lambda row: write(points, row, voxel_size, batch_index, origin, coords))

    return reporting(kernel if has_index else drop_parameters(kernel, "batch_index"))
