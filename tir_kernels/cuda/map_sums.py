"""Sums over a kernel map: which tiles there are, which rows a slot stands for, and how the sums of a row come together.

Each group of taps has an order of rows of its own, so a row has sums in as many tiles as there are groups. They are parts that
are added in order, see `partial_sums`, as are the steps of a tile where there are few tiles.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm.script import tirx as T

from .epilogue import Epilogue
from .guards import check_map
from .launch import THREADS, left_to_nvcc
from .neighbour_table import TILE_ROWS, Table
from .partial_sums import add_parts, allocate_parts, finish_part
from .tensor_core import VECTOR
from .vectors import aligned


@dataclass(frozen=True)
class Fit:
    """The sizes that a map and what meets it must agree on."""

    map_rows: tvm.tirx.Buffer  # int64 [2]
    rows_in: tvm.tirx.Expr
    rows_out: tvm.tirx.Expr
    taps: tvm.tirx.Expr  # that the weight has

    def holds(self, table: Table):
        """An expression: whether the map fits."""
        rows = T.And(self.map_rows[0] == self.rows_in, self.map_rows[1] == self.rows_out)
        return T.And(rows, table.taps == self.taps)

    def check(self, status, table: Table, first) -> None:
        """Emit: where `first` holds, which is one thread of the grid, report a map that does not fit."""
        with T.If(first), T.Then():
            check_map(status, self.map_rows, self.rows_in, self.rows_out, table.taps, self.taps)


@dataclass(frozen=True)
class TileOfSlots:
    """One tile: `group` of taps, its number among those of the group, and how many taps it meets."""

    table: Table
    tile: tvm.tirx.Expr  # int32, of all groups
    group: tvm.tirx.Expr  # int32
    first: tvm.tirx.Expr  # int32, its first slot
    live: tvm.tirx.Expr  # int32

    @classmethod
    def of(cls, table: Table, tile, fits) -> "TileOfSlots":
        """Emit what finds a tile, an int32; where the map does not fit it meets nothing."""
        of_group = T.Cast("int32", table.tiles_of_group)
        live = T.bind(T.if_then_else(fits, table.tiles[tile, 0], 0))
        return cls(table, tile, T.bind(tile // of_group), T.bind(tile % of_group * TILE_ROWS), live)

    def tap(self, i):
        """Tap `i` of those that the tile meets."""
        return self.table.tiles[self.tile, 1 + i]

    def source(self, tap, r):
        """The input row of row `r` of the tile, or -1."""
        return self.table.neighbours[tap, self.first + r]

    def row(self, r):
        """The output row of row `r` of the tile, or -1."""
        return self.table.order[self.group, self.first + r]


def vector_of(columns: int) -> int:
    """How many columns a thread sums in `sum_slots`."""
    return VECTOR if columns % VECTOR == 0 else 1


def sum_slots(table: Table, fit: Fit, status, epilogue: Epilogue, add: Callable, read=()) -> None:
    """Emit the launches of sums that are no products of matrices: a thread for a few columns of a slot.

    add(values, tap, source, column, fast) adds what a pair gives to a vector of sums, float32 [`vector_of`], local; `fast`:
    whether the buffers of the epilogue, and those that `read` names, are aligned.
    """
    columns = int(epilogue.out.shape[1])
    vector = vector_of(columns)
    across = columns // vector
    of_tile = -(-TILE_ROWS * across // THREADS)  # blocks
    blocks = table.groups * table.tiles_of_group * of_tile
    parts = table.groups
    sums = allocate_parts(parts, fit.rows_out, columns)
    with (
        T.launch_thread("blockIdx.x", blocks) as block,
        T.launch_thread("threadIdx.x", THREADS) as thread,
        left_to_nvcc(),
    ):
        fits = T.bind(fit.holds(table))
        fit.check(status, table, T.And(block == 0, thread == 0))
        slots = TileOfSlots.of(table, T.Cast("int32", block // of_tile), fits)
        place = T.bind(T.Cast("int32", block % of_tile) * THREADS + thread)
        fast = T.bind(aligned(*epilogue.buffers, *read))
        values = T.alloc_buffer((vector,), "float32", scope="local")
        with T.If(T.And(place < TILE_ROWS * across, fits)), T.Then():
            r, column = T.bind(place // across), T.bind(place % across * vector)
            row = T.bind(T.Cast("int64", slots.row(r)))
            with T.If(row >= 0), T.Then():
                for e in range(vector):
                    T.buffer_store(values, T.float32(0), [e])
                with T.serial(0, slots.live) as i:
                    tap = T.bind(slots.tap(i))
                    source = T.bind(T.Cast("int64", slots.source(tap, r)))
                    with T.If(source >= 0), T.Then():
                        add(values, tap, source, column, fast)
                finish_part(sums, slots.group, parts, epilogue, values, row, column, columns - column, fast)
        fill_unfit(epilogue.out, block, blocks, thread, THREADS, fits)
    add_parts(sums, parts, fit.rows_out, columns, epilogue, fit.holds(table))


def fill_unfit(out, block, blocks, thread, threads: int, fits) -> None:
    """Emit, for all blocks of a grid: where a map does not fit, write zeros, so that what follows reads what was written."""
    rows, columns = out.shape
    with T.If(T.Not(fits)), T.Then():
        count = rows * columns
        first = T.bind(T.Cast("int64", block) * threads + T.Cast("int64", thread))
        with T.serial(0, (count - first + (blocks * threads - 1)) // (blocks * threads)) as i:
            place = T.bind(first + i * (blocks * threads))
            T.buffer_store(out, T.Cast(out.dtype, T.float32(0)), [place // columns, place % columns])
