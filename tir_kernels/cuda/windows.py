"""Windows of voxels: range check and division, and the rows of each window by a stable sort."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..integers import divide
from ..script import inline
from ..spec.coordinate_index import DEFAULT_HIGH, DEFAULT_LOW
from ..spec.windows import GroupRows, WindowCoords
from .gpu import Gpu, kernel_name, stating
from .guards import check_range, match_status, reporting
from .launch import for_each
from .sort import SORT_REGISTERS, bits_below, find_starts, sort_pairs


@cache
def window_coords(spec: WindowCoords, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `WindowCoords`."""
    window = spec.window

    def window_along(coords, row, axis, shift):
        return divide(coords[row, axis + 1] + T.Cast("int32", T.floormod(shift, T.int64(window[axis]))), window[axis])

    @inline
    def write(coords, shift_x, shift_y, shift_z, windows, row):
        windows[row, 0] = coords[row, 0]
        windows[row, 1] = window_along(coords, row, 0, shift_x)
        windows[row, 2] = window_along(coords, row, 1, shift_y)
        windows[row, 3] = window_along(coords, row, 2, shift_z)

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, shift_x: T.int64, shift_y: T.int64, shift_z: T.int64, status_: T.handle, windows_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("window_coords")})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        status = T.meta_var(match_status(status_))
        windows = match_buffer(windows_, (rows, 4), "int32")
        check_range(status, coords, rows, DEFAULT_LOW, DEFAULT_HIGH)
        for_each(rows, lambda row: write(coords, shift_x, shift_y, shift_z, windows, row))

    return reporting(kernel)


@cache
def group_rows(spec: GroupRows, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `GroupRows`."""

    @script.prim_func(s_tir=True)
    def kernel(group_: T.handle, order_: T.handle, offsets_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("group_rows")})
        rows, entries = T.int64(), T.int64()
        group = match_buffer(group_, (rows,), "int32")
        order = match_buffer(order_, (rows,), "int32")
        offsets = match_buffer(offsets_, (entries,), "int32")
        sorted_group = T.alloc_buffer((rows,), "int32")
        sort_pairs(group, None, sorted_group, order, rows, bits_below(entries))
        find_starts(sorted_group, rows, offsets, entries)

    return stating(kernel, SORT_REGISTERS)
