"""Windows of voxels, for attention within them (Swin3D, Yang et al., arXiv:2304.06906; TRELLIS, arXiv:2412.01506).

    window of a row = (batch, floor((x + sx) / wx), floor((y + sy) / wy), floor((z + sz) / wz))
    order[offsets[i] : offsets[i + 1]] = the rows of the i-th window, ascending;  windows ascend

The windows of all rows are coordinates again: `unique` numbers them in order, and a stable counting sort by that number
groups the rows.

    window_coords   (coords [N, 4], windows [N, 4])                          range check, division
    group_rows      (group int32 [N], order int32 [N], offsets int32 [G + 1])
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from .coordinate_index import DEFAULT_HIGH, DEFAULT_LOW, ROW_CHUNK, check_range, extremes
from .unique import divide


def naive(coords, window=(8, 8, 8), shift=(0, 0, 0)):
    """Oracle. coords int32 [N, 4] -> (order int32 [N], offsets int32 [W + 1])."""
    windows = (np.asarray(coords) + np.array([0, *shift])) // np.array([1, *window])
    _, group, sizes = np.unique(windows, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    return order.astype("int32"), np.cumsum([0, *sizes]).astype("int32")


@cache
def window_coords(window: tuple[int, int, int], shift: tuple[int, int, int]) -> tvm.tirx.PrimFunc:
    """PrimFunc (coords int32 [N, 4], windows int32 [N, 4]); ValueError for a row outside of the range.

    `shift` from 0 to `window` - 1, so that windows keep within the range of coordinates.
    """

    def window_along(coords, row, axis):
        return divide(coords[row, axis + 1] + shift[axis], window[axis])

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, windows_: T.handle):
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
                windows[row, 1] = window_along(coords, row, 0)
                windows[row, 2] = window_along(coords, row, 1)
                windows[row, 3] = window_along(coords, row, 2)

    return kernel


@cache
def group_rows() -> tvm.tirx.PrimFunc:
    """PrimFunc (group int32 [N], order int32 [N], offsets int32 [G + 1]): rows by group, ascending in each.

    Groups from 0 to G - 1. One thread counts and places, some 2 ns a row.
    """

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
