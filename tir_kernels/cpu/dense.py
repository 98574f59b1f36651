"""Between sparse rows and a dense grid, whose extents are known at run time.

`to_dense` sorts the rows by slab, the cells of one (b, x), keeping their order (a counting sort); then each slab is one
thread's, which clears it and writes the rows in it.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_DUPLICATE
from ..script import inline
from ..spec.dense import FromDense, ToDense, grid_shape
from .guards import check_inside
from .isa import Isa

CHUNK = 64  # rows that one task of `from_dense` copies


def sort_by_slab(coords, n, slabs, size_x, size_z, start, order, cells):
    """Emit: order[start[s] : start[s + 1]] = the rows in slab s, ascending, and `cells` their cells in it.

    start [slabs + 2]; order, cells [n].
    """

    def slab_of(row):
        return T.Cast("int64", coords[row, 0]) * size_x + T.Cast("int64", coords[row, 1])

    @inline
    def sort(coords, n, slabs, size_z, start, order, cells):
        for slab in range(slabs + 2):
            start[slab] = T.int32(0)
        for row in range(n):
            start[slab_of(row) + 2] += 1
        for slab in range(slabs):
            start[slab + 2] += start[slab + 1]
        for row in range(n):  # start[s + 1] runs from the first place of slab s to its end
            place: T.let = T.Cast("int64", start[slab_of(row) + 1])
            order[place] = T.Cast("int32", row)
            cells[place] = T.Cast("int64", coords[row, 2]) * size_z + T.Cast("int64", coords[row, 3])
            start[slab_of(row) + 1] += 1

    sort(coords, n, slabs, size_z, start, order, cells)


@inline
def report_duplicate(coords, n, repeats, slabs):
    """Raise for the first row that repeats an earlier one; repeats [slabs]: the first of each slab, or -1."""
    first = T.alloc_buffer((1,), "int32")
    first[0] = T.int32(-1)
    for slab in range(slabs):
        if T.And(repeats[slab] >= 0, T.Or(first[0] < 0, repeats[slab] < first[0])):
            first[0] = repeats[slab]
    if first[0] >= 0:
        row: T.let = T.Cast("int64", first[0])
        for earlier in range(n):
            if T.And(
                T.And(coords[earlier, 0] == coords[row, 0], coords[earlier, 1] == coords[row, 1]),
                T.And(coords[earlier, 2] == coords[row, 2], coords[earlier, 3] == coords[row, 3]),
            ):
                T.evaluate(T.call_packed(RAISE_DUPLICATE, row, earlier))


@cache
def to_dense(spec: ToDense, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `ToDense`."""
    channels, dtype, channels_last = spec.channels, spec.dtype, spec.channels_last

    @inline
    def clear(out, b, i, c, layer):
        """the cells of a slab in channel `c`, or in all channels if they come last"""
        if channels_last:
            for element in range(layer * channels):
                out[b, i, element] = T.Cast(dtype, 0)
        else:
            for cell in range(layer):
                out[b, c, i, cell] = T.Cast(dtype, 0)

    def place(b, i, c, cell):
        """Where channel `c` of a cell is."""
        return (b, i, cell * channels + c) if channels_last else (b, c, i, cell)

    @inline
    def note_repeats(order, cells, begin, count, out, b, i, repeats, slab):
        """repeats[slab], found by setting each row's cell to 1; the cells are clear"""
        repeats[slab] = T.int32(-1)
        for j in range(count):
            if T.And(T.Cast("float32", out[place(b, i, 0, cells[begin + j])]) != T.float32(0), repeats[slab] < 0):
                repeats[slab] = order[begin + j]
            out[place(b, i, 0, cells[begin + j])] = T.Cast(dtype, 1)

    @inline
    def write_rows(x, order, cells, begin, count, out, b, i, layer):
        if channels_last:
            for j in range(count):
                row: T.let = T.Cast("int64", order[begin + j])
                cell: T.let = cells[begin + j]
                for c in range(channels):
                    out[place(b, i, c, cell)] = x[row, c]
        else:
            for c in range(channels):
                if c > 0:
                    clear(out, b, i, c, layer)
                for j in range(count):
                    out[place(b, i, c, cells[begin + j])] = x[T.Cast("int64", order[begin + j]), c]

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, coords_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"to_dense_{dtype}"})
        n, batch, size_x, size_y, size_z = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        coords = match_buffer(coords_, (n, 4), "int32")
        grid = match_buffer(out_, grid_shape(batch, channels, (size_x, size_y, size_z), channels_last), dtype)
        out = T.decl_buffer(
            (batch, size_x, size_y * size_z * channels) if channels_last else (batch, channels, size_x, size_y * size_z),
            dtype,
            data=grid.data,
        )
        start = T.alloc_buffer((batch * size_x + 2,), "int32")
        repeats = T.alloc_buffer((batch * size_x,), "int32")
        order = T.alloc_buffer((n,), "int32")
        cells = T.alloc_buffer((n,), "int64")
        check_inside(coords, n, batch, (size_x, size_y, size_z))
        sort_by_slab(coords, n, batch * size_x, size_x, size_z, start, order, cells)
        for slab in T.parallel(batch * size_x):
            b: T.let = slab // size_x
            i: T.let = slab % size_x
            begin: T.let = T.Cast("int64", start[slab])
            count: T.let = T.Cast("int64", start[slab + 1]) - begin
            clear(out, b, i, 0, size_y * size_z)
            note_repeats(order, cells, begin, count, out, b, i, repeats, slab)
            write_rows(x, order, cells, begin, count, out, b, i, size_y * size_z)
        report_duplicate(coords, n, repeats, batch * size_x)

    return kernel


@cache
def from_dense(spec: FromDense, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `FromDense`."""
    dtype, channels_last = spec.dtype, spec.channels_last

    @script.prim_func(s_tir=True)
    def kernel(dense_: T.handle, coords_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"from_dense_{dtype}"})
        n, channels, batch, size_x, size_y, size_z = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        grid = match_buffer(dense_, grid_shape(batch, channels, (size_x, size_y, size_z), channels_last), dtype)
        coords = match_buffer(coords_, (n, 4), "int32")
        out = match_buffer(out_, (n, channels), dtype)
        dense = T.decl_buffer((batch * size_x * size_y * size_z * channels,), dtype, data=grid.data)
        check_inside(coords, n, batch, (size_x, size_y, size_z))
        for chunk in T.parallel((n + CHUNK - 1) // CHUNK):
            cells = T.alloc_buffer((CHUNK,), "int64")  # where the first channel of each row is
            count: T.let = T.min(T.int64(CHUNK), n - chunk * CHUNK)
            for i in range(count):
                row: T.let = chunk * CHUNK + i
                plane: T.let = T.Cast("int64", coords[row, 0]) * (1 if channels_last else channels) * size_x + T.Cast(
                    "int64", coords[row, 1]
                )
                cell: T.let = (plane * size_y + T.Cast("int64", coords[row, 2])) * size_z + T.Cast("int64", coords[row, 3])
                cells[i] = cell * (channels if channels_last else 1)
            if channels_last:
                for i in range(count):
                    for c in range(channels):
                        out[chunk * CHUNK + i, c] = dense[cells[i] + c]
            else:
                for c in range(channels):
                    for i in range(count):
                        out[chunk * CHUNK + i, c] = dense[cells[i] + c * (size_x * size_y * size_z)]

    return kernel
