"""Between sparse rows and a dense grid.

First the row of every cell is noted, serially, which finds duplicates; then each slab of one (b, x) is one thread's,
which clears it and writes the rows in it.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_DUPLICATE
from ..script import inline
from ..spec.dense import FromDense, ToDense, grid_shape
from .coordinate_index import fill
from .guards import check_inside
from .isa import Isa

CHUNK = 64  # rows that one task of `from_dense` copies


@cache
def to_dense(spec: ToDense, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `ToDense`."""
    channels, batch, shape, dtype, channels_last = spec.channels, spec.batch, spec.shape, spec.dtype, spec.channels_last
    size_x, size_y, size_z = shape
    layer = size_y * size_z

    def cell_of(coords, row):
        """The cell of a row, as an int64 expression."""
        cell = T.Cast("int64", coords[row, 0])
        for axis, extent in enumerate(shape, start=1):
            cell = cell * extent + T.Cast("int64", coords[row, axis])
        return cell

    @inline
    def note_rows(coords, rows, cells):
        for row in range(rows):
            if cells[cell_of(coords, row)] >= 0:
                T.evaluate(T.call_packed(RAISE_DUPLICATE, row, cells[cell_of(coords, row)]))
            cells[cell_of(coords, row)] = T.Cast("int32", row)

    @inline
    def write_slab(x, cells, slab, out):
        taken = T.alloc_buffer((layer,), "int32")
        count = T.alloc_buffer((1,), "int32")
        b: T.let = slab // size_x
        i: T.let = slab % size_x
        count[0] = 0
        for cell in range(layer):  # write always, advance on a hit: no branch to mispredict
            taken[count[0]] = cell
            count[0] += T.Cast("int32", cells[slab * layer + cell] >= 0)
        if channels_last:
            for y, z, c in T.grid(size_y, size_z, channels):
                out[b, i, y, z, c] = T.Cast(dtype, 0)
            for j in range(count[0]):
                for c in range(channels):
                    out[b, i, taken[j] // size_z, taken[j] % size_z, c] = x[cells[slab * layer + taken[j]], c]
        else:
            for c in range(channels):
                for y, z in T.grid(size_y, size_z):
                    out[b, c, i, y, z] = T.Cast(dtype, 0)
                for j in range(count[0]):
                    out[b, c, i, taken[j] // size_z, taken[j] % size_z] = x[cells[slab * layer + taken[j]], c]

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, coords_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"to_dense_{dtype}"})
        n = T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        coords = match_buffer(coords_, (n, 4), "int32")
        out = match_buffer(out_, grid_shape(batch, channels, shape, channels_last), dtype)
        cells = T.alloc_buffer((T.int64(batch * size_x * layer),), "int32")
        check_inside(coords, n, batch, shape)
        fill(cells, T.int64(batch * size_x * layer), T.int32(-1))
        note_rows(coords, n, cells)
        for slab in T.parallel(T.int64(batch * size_x)):
            write_slab(x, cells, slab, out)

    return kernel


@cache
def from_dense(spec: FromDense, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `FromDense`."""
    channels, batch, shape, dtype, channels_last = spec.channels, spec.batch, spec.shape, spec.dtype, spec.channels_last

    def element(dense, coords, row, c):
        b, x, y, z = (T.Cast("int64", coords[row, axis]) for axis in range(4))
        return dense[b, x, y, z, c] if channels_last else dense[b, c, x, y, z]

    @script.prim_func(s_tir=True)
    def kernel(dense_: T.handle, coords_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"from_dense_{dtype}"})
        n = T.int64()
        dense = match_buffer(dense_, grid_shape(batch, channels, shape, channels_last), dtype)
        coords = match_buffer(coords_, (n, 4), "int32")
        out = match_buffer(out_, (n, channels), dtype)
        check_inside(coords, n, batch, shape)
        for chunk in T.parallel((n + CHUNK - 1) // CHUNK):
            count: T.let = T.min(T.int64(CHUNK), n - chunk * CHUNK)
            if channels_last:
                for i in range(count):
                    for c in range(channels):
                        out[chunk * CHUNK + i, c] = element(dense, coords, chunk * CHUNK + i, c)
            else:
                for c in range(channels):
                    for i in range(count):
                        out[chunk * CHUNK + i, c] = element(dense, coords, chunk * CHUNK + i, c)

    return kernel
