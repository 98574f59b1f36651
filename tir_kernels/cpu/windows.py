"""Windows of voxels: range check and division, and the rows of each window by a stable counting sort."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..integers import divide
from ..spec.coordinate_index import DEFAULT_HIGH, DEFAULT_LOW
from ..spec.windows import GroupRows, WindowCoords
from .coordinate_index import ROW_CHUNK
from .guards import check_range, extremes
from .isa import Isa


@cache
def window_coords(spec: WindowCoords, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `WindowCoords`."""
    window = spec.window

    def window_along(coords, row, axis, shift):
        return divide(coords[row, axis + 1] + T.Cast("int32", T.floormod(shift, T.int64(window[axis]))), window[axis])

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, shift_x: T.int64, shift_y: T.int64, shift_z: T.int64, windows_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "window_coords"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        windows = match_buffer(windows_, (rows, 4), "int32")
        lowest = T.alloc_buffer((4,), "int32")
        highest = T.alloc_buffer((4,), "int32")
        extremes(coords, rows, lowest, highest)
        check_range(coords, rows, lowest, highest, DEFAULT_LOW, DEFAULT_HIGH)
        for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):
            for i in range(T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK)):
                row: T.let = chunk * ROW_CHUNK + i
                windows[row, 0] = coords[row, 0]
                windows[row, 1] = window_along(coords, row, 0, shift_x)
                windows[row, 2] = window_along(coords, row, 1, shift_y)
                windows[row, 3] = window_along(coords, row, 2, shift_z)

    return kernel


@cache
def group_rows(spec: GroupRows, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `GroupRows`. One thread counts and places, some 2 ns a row."""

    @script.prim_func(s_tir=True)
    def kernel(group_: T.handle, order_: T.handle, offsets_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "group_rows"})
        rows, entries = T.int64(), T.int64()
        group = match_buffer(group_, (rows,), "int32")
        order = match_buffer(order_, (rows,), "int32")
        offsets = match_buffer(offsets_, (entries,), "int32")
        for entry in range(entries):
            offsets[entry] = T.int32(0)
        for row in range(rows):
            offsets[T.Cast("int64", group[row])] += 1
        for entry in range(entries - 1):
            offsets[entry + 1] += offsets[entry]
        # Every entry is the end of its group; placing the rows from the last one on makes it the start.
        for i in range(rows):
            row: T.let = rows - 1 - i
            place: T.let = T.Cast("int64", offsets[T.Cast("int64", group[row])]) - 1
            offsets[T.Cast("int64", group[row])] = T.Cast("int32", place)
            order[place] = T.Cast("int32", row)

    return kernel
