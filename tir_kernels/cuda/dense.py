"""Between sparse rows and a dense grid, whose extents are known at run time: a thread an element.

`to_dense` sorts the rows by their cell, which finds those that repeat another and takes no memory for cells without a row.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_DUPLICATE
from ..script import inline
from ..spec.dense import FromDense, ToDense, grid_shape
from .gpu import Gpu, kernel_name, stating
from .guards import check_inside, match_status, refuse_first, reporting
from .launch import for_each
from .sort import SORT_REGISTERS, bits_below, sort_pairs


def is_inside(coords, row, batch, shape):
    """Whether a row of coords lies in the grid."""
    inside = T.bool(True)
    for column, extent in enumerate((batch, *shape)):
        value = T.Cast("int64", coords[row, column])
        inside = T.And(inside, T.And(value >= 0, value < extent))
    return inside


def cell_of(coords, row, shape):
    """The cell of a row among those of all batch elements."""
    cell = T.Cast("int64", coords[row, 0])
    for column, extent in enumerate(shape):
        cell = cell * extent + T.Cast("int64", coords[row, column + 1])
    return cell


def place_in_grid(cell, c, channels, volume, channels_last: bool):
    """Where a channel of a cell is in the grid; `volume`: cells of a batch element."""
    return cell * channels + c if channels_last else (cell // volume * channels + c) * volume + cell % volume


@cache
def to_dense(spec: ToDense, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `ToDense`."""
    channels, dtype, channels_last = spec.channels, spec.dtype, spec.channels_last

    @inline
    def clear(out, place):
        out[place] = T.Cast(dtype, 0)

    @inline
    def write_cell(coords, batch, shape, cells, row, outside):
        cells[row] = T.if_then_else(is_inside(coords, row, batch, shape), cell_of(coords, row, shape), outside)

    def repeats(cells, slot):
        return T.And(slot > 0, cells[slot] == cells[T.max(slot, T.int64(1)) - 1])

    @inline
    def note_repeat(cells, order, earlier, outside, slot):
        """earlier[row] = the row before it in the same cell, or -1"""
        earlier[order[slot]] = T.int32(-1)
        if T.And(repeats(cells, slot), cells[slot] < outside):
            earlier[order[slot]] = order[slot - 1]

    def slot_and_channel(place, n):
        """What a thread writes: neighbours side by side in the grid."""
        return (place // channels, place % channels) if channels_last else (place % n, place // n)

    @inline
    def write_element(x, cells, order, out, outside, volume, slot, c):
        # A row that repeats another, which was refused, would write where that one does.
        if T.And(cells[slot] < outside, T.Not(repeats(cells, slot))):
            out[place_in_grid(cells[slot], c, channels, volume, channels_last)] = x[T.Cast("int64", order[slot]), c]

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, coords_: T.handle, status_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("to_dense", dtype)})
        n, batch, size_x, size_y, size_z = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        coords = match_buffer(coords_, (n, 4), "int32")
        status = T.meta_var(match_status(status_))
        shape = T.meta_var((size_x, size_y, size_z))
        grid = match_buffer(out_, grid_shape(batch, channels, shape, channels_last), dtype)
        out = T.decl_buffer((batch * size_x * size_y * size_z * channels,), dtype, data=grid.data)
        volume = T.meta_var(size_x * size_y * size_z)
        given_cells = T.alloc_buffer((n,), "int64")
        cells = T.alloc_buffer((n,), "int64")
        order = T.alloc_buffer((n,), "int32")
        earlier = T.alloc_buffer((n,), "int32")
        check_inside(status, coords, n, batch, shape)
        for_each(n, lambda row: write_cell(coords, batch, shape, given_cells, row, batch * volume))
        sort_pairs(given_cells, None, cells, order, n, bits_below(batch * volume + 1))
        for_each(n, lambda slot: note_repeat(cells, order, earlier, batch * volume, slot))
        refuse_first(status, n, lambda row: earlier[row] >= 0, RAISE_DUPLICATE, lambda row: (row, earlier[row], "coords"))
        for_each(batch * volume * channels, lambda place: clear(out, place))
        for_each(
            n * channels,
            lambda place: write_element(x, cells, order, out, batch * volume, volume, *slot_and_channel(place, n)),
        )

    return stating(reporting(kernel), SORT_REGISTERS)


@cache
def from_dense(spec: FromDense, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `FromDense`."""
    dtype, channels_last = spec.dtype, spec.channels_last

    @inline
    def read_element(dense, coords, out, batch, shape, channels, volume, row, c):
        if is_inside(coords, row, batch, shape):
            out[row, c] = dense[place_in_grid(cell_of(coords, row, shape), c, channels, volume, channels_last)]
        else:
            out[row, c] = T.Cast(dtype, 0)

    @script.prim_func(s_tir=True)
    def kernel(dense_: T.handle, coords_: T.handle, status_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("from_dense", dtype)})
        n, channels, batch, size_x, size_y, size_z = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        shape = T.meta_var((size_x, size_y, size_z))
        grid = match_buffer(dense_, grid_shape(batch, channels, shape, channels_last), dtype)
        coords = match_buffer(coords_, (n, 4), "int32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (n, channels), dtype)
        dense = T.decl_buffer((batch * size_x * size_y * size_z * channels,), dtype, data=grid.data)
        volume = T.meta_var(size_x * size_y * size_z)
        check_inside(status, coords, n, batch, shape)
        for_each(
            n * channels,
            lambda place: read_element(dense, coords, out, batch, shape, channels, volume, place // channels, place % channels),
        )

    return reporting(kernel)
