"""Unique coordinates with inverse, optionally after dividing by a factor per axis.

The order does not depend on the method: a dense grid over the bounding box where that is small (mark the cells, then number
them in order), else a radix sort of the cell numbers (least significant digit first, which is stable).
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..bounds import LinearBound, with_bounds
from ..buffers import match_buffer
from ..coordinates import GRID_CELLS_MOST, check_grid, count_cells, grid_bound, grid_limit, match_plan
from ..granting import check_memory
from ..integers import divide
from ..script import inline
from ..spec.coordinate_index import GRID, HASH, PLAN_EXTENT, PLAN_METHOD, PLAN_ORIGIN
from ..spec.unique import FillUnique, PlanUnique, RankUnique
from .caches import L1
from .coordinate_index import OWN_CHUNK, PARTS_MOST, ROW_CHUNK, SPARE, Parts, RowCells, begin_plan
from .guards import refuse
from .isa import Isa

SORT = HASH  # the method where no grid fits
DIGIT_BITS = 11  # of the radix sort
DIGITS = 1 << DIGIT_BITS
assert 2 * 8 * DIGITS <= L1, "counters stay in the L1 cache"


@inline
def counts_to_starts(counts, size):
    """counts[i] = the sum of those before it: where each kind begins in a counting sort."""
    total = T.alloc_buffer((1,), counts.dtype)
    total[0] = T.Cast(counts.dtype, 0)
    for i in range(size):
        here: T.let = counts[i]
        counts[i] = total[0]
        total[0] = total[0] + here


@cache
def plan_unique(spec: PlanUnique, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `PlanUnique`. ValueError for `method="grid"` when the box has more than GRID_CELLS_MOST cells."""
    factor, method, low, high = spec.factor, spec.method, spec.low, spec.high
    factors = (1, *factor)

    @inline
    def divided_box(axis, plan, lowest, highest):
        plan.entries[PLAN_ORIGIN + axis] = T.Cast("int64", divide(lowest[axis], factors[axis]))
        plan.entries[PLAN_EXTENT + axis] = T.Cast(
            "int64", divide(highest[axis], factors[axis]) - divide(lowest[axis], factors[axis]) + 1
        )

    def all_axes(plan, lowest, highest):
        for axis in range(4):
            divided_box(axis, plan, lowest, highest)

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, size_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "plan_unique"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = T.meta_var(match_plan(plan_))
        size = match_buffer(size_, (2,), "int64")
        lowest = T.alloc_buffer((4,), "int32")
        highest = T.alloc_buffer((4,), "int32")
        cells = T.alloc_buffer((1,), "int64")
        begin_plan(plan, coords, rows, lowest, highest, low, high)
        all_axes(plan, lowest, highest)
        count_cells(plan, cells, grid_limit(rows) if method == "auto" else T.int64(GRID_CELLS_MOST))
        check_grid(method, plan, cells, refuse)
        if T.And(T.bool(method != "sort"), cells[0] >= 0):
            plan.entries[PLAN_METHOD] = T.int64(GRID)
            size[0] = cells[0] + SPARE
            size[1] = T.int64(1)
        else:
            plan.entries[PLAN_METHOD] = T.int64(SORT)
            size[0] = T.int64(1)
            size[1] = T.max(rows * 4, T.int64(1))
        check_memory("unique", (("int32", (size[0],)), ("int64", (size[1],))))

    one, entries = LinearBound(0, 1), LinearBound(4)
    cells = [one] if method == "sort" else [one, grid_bound(method, spare=SPARE)]
    return with_bounds(kernel, size=[cells, [one] if method == "grid" else [one, entries]])


@cache
def rank_unique(spec: RankUnique, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `RankUnique`."""
    factor = spec.factor

    def cell(coords, row, plan):
        x, y, z = (divide(coords[row, axis + 1], factor[axis]) for axis in range(3))
        return plan.cell_of((coords[row, 0], x, y, z))

    @inline
    def rank_grid(coords, plan, grid, inverse, count, rows, num_cells):
        cells = T.alloc_buffer((rows,), "int32")
        lowest = T.alloc_buffer(((rows + OWN_CHUNK - 1) // OWN_CHUNK,), "int32")
        highest = T.alloc_buffer(((rows + OWN_CHUNK - 1) // OWN_CHUNK,), "int32")
        parts_count = T.alloc_buffer((1,), "int64")
        each = T.alloc_buffer((1,), "int64")
        taken = T.alloc_buffer((PARTS_MOST,), "int32")
        numbered = T.meta_var(RowCells(cells, rows, lowest, highest))
        parts = T.meta_var(Parts(num_cells, parts_count, each))
        numbered.number(lambda row: cell(coords, row, plan))
        parts.split()
        for i in T.parallel(parts_count[0]):
            here = T.alloc_buffer((1,), "int32")
            first: T.let = parts.first(i)
            part = T.meta_var(parts.part(i, first))
            for j in range(part.count):
                grid[part.first + j] = T.int32(-1)
            numbered.insert(grid, part)
            here[0] = T.int32(0)
            for j in range(part.count):
                here[0] = here[0] + T.Cast("int32", grid[part.first + j] >= 0)
            taken[i] = here[0]
        count[0] = T.int64(0)
        for i in range(parts_count[0]):
            here: T.let = taken[i]
            taken[i] = T.Cast("int32", count[0])
            count[0] = count[0] + T.Cast("int64", here)
        for i in T.parallel(parts_count[0]):
            rank = T.alloc_buffer((1,), "int32")
            first: T.let = parts.first(i)
            part = T.meta_var(parts.part(i, first))
            rank[0] = taken[i]
            for j in range(part.count):
                here: T.let = T.Cast("int32", grid[part.first + j] >= 0)
                grid[part.first + j] = rank[0]
                rank[0] = rank[0] + here
        for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):
            for i in range(T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK)):
                inverse[chunk * ROW_CHUNK + i] = grid[cells[chunk * ROW_CHUNK + i]]

    @inline
    def sort_digit(order, source, target, rows, shift):
        """One stable pass: order[target ..] = order[source ..] by the digit at `shift`; entries are (cell, row) pairs."""
        starts = T.alloc_buffer((DIGITS,), "int64")
        for digit in range(DIGITS):
            starts[digit] = T.int64(0)
        for i in range(rows):
            digit: T.let = (order[source + 2 * i] >> shift) & (DIGITS - 1)
            starts[digit] = starts[digit] + 1
        counts_to_starts(starts, DIGITS)
        for i in range(rows):
            digit: T.let = (order[source + 2 * i] >> shift) & (DIGITS - 1)
            place: T.let = target + 2 * starts[digit]
            order[place] = order[source + 2 * i]
            order[place + 1] = order[source + 2 * i + 1]
            starts[digit] = starts[digit] + 1

    @inline
    def rank_sorted(coords, plan, order, inverse, count, rows):
        shift = T.alloc_buffer((1,), "int64")
        source = T.alloc_buffer((1,), "int64")
        cells: T.let = plan.extent(0) * plan.extent(1) * plan.extent(2) * plan.extent(3)
        for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):
            for i in range(T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK)):
                order[2 * (chunk * ROW_CHUNK + i)] = cell(coords, chunk * ROW_CHUNK + i, plan)
                order[2 * (chunk * ROW_CHUNK + i) + 1] = chunk * ROW_CHUNK + i
        shift[0] = T.int64(0)
        source[0] = T.int64(0)
        while (cells - 1) >> shift[0] > 0:
            sort_digit(order, source[0], 2 * rows - source[0], rows, shift[0])
            source[0] = 2 * rows - source[0]
            shift[0] = shift[0] + DIGIT_BITS
        count[0] = T.int64(0)
        for i in range(rows):
            if i > 0:
                if order[source[0] + 2 * i] != order[source[0] + 2 * i - 2]:
                    count[0] = count[0] + 1
            inverse[order[source[0] + 2 * i + 1]] = T.Cast("int32", count[0])
        if rows > 0:
            count[0] = count[0] + 1

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, cells_: T.handle, order_: T.handle, inverse_: T.handle, count_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "rank_unique"})
        rows, num_cells, entries = T.int64(), T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = T.meta_var(match_plan(plan_))
        grid = match_buffer(cells_, (num_cells,), "int32")
        order = match_buffer(order_, (entries,), "int64")
        inverse = match_buffer(inverse_, (rows,), "int32")
        count = match_buffer(count_, (1,), "int64")
        if plan.method == GRID:
            rank_grid(coords, plan, grid, inverse, count, rows, num_cells - SPARE)
        else:
            rank_sorted(coords, plan, order, inverse, count, rows)

    return with_bounds(kernel, count=[[LinearBound(1)]])


@cache
def fill_unique(spec: FillUnique, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `FillUnique`."""
    factor = spec.factor

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, inverse_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "fill_unique"})
        rows, unique = T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        inverse = match_buffer(inverse_, (rows,), "int32")
        out = match_buffer(out_, (unique, 4), "int32")
        lowest = T.alloc_buffer(((rows + OWN_CHUNK - 1) // OWN_CHUNK,), "int32")
        highest = T.alloc_buffer(((rows + OWN_CHUNK - 1) // OWN_CHUNK,), "int32")
        count = T.alloc_buffer((1,), "int64")
        each = T.alloc_buffer((1,), "int64")
        source = T.alloc_buffer((unique + SPARE,), "int32")  # a row of each cell
        numbered = T.meta_var(RowCells(inverse, rows, lowest, highest))
        parts = T.meta_var(Parts(unique, count, each))
        for chunk in T.parallel((rows + OWN_CHUNK - 1) // OWN_CHUNK):
            numbered.note_extremes(chunk)
        parts.split()
        for i in T.parallel(count[0]):
            first: T.let = parts.first(i)
            part = T.meta_var(parts.part(i, first))
            numbered.insert(source, part)
        for chunk in T.parallel((unique + ROW_CHUNK - 1) // ROW_CHUNK):
            for i in range(T.min(T.int64(ROW_CHUNK), unique - chunk * ROW_CHUNK)):
                target: T.let = chunk * ROW_CHUNK + i
                row: T.let = T.Cast("int64", source[target])
                out[target, 0] = coords[row, 0]
                out[target, 1] = divide(coords[row, 1], factor[0])
                out[target, 2] = divide(coords[row, 2], factor[1])
                out[target, 3] = divide(coords[row, 3], factor[2])

    return kernel
