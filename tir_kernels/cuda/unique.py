"""Unique coordinates with inverse on a device, optionally after dividing by a factor per axis.

The order does not depend on the method: where the bounding box is small a bit a cell, which is set and numbered by a prefix
sum over the words; else a radix sort of the keys. Rows of equal coordinates have one number either way.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..bounds import LinearBound, with_bounds
from ..buffers import match_buffer
from ..coordinates import (
    GRID_CELLS_FREE,
    GRID_CELLS_MOST,
    GRID_CELLS_PER_ROW,
    check_grid,
    count_cells,
    grid_limit,
    key_of,
    match_plan,
)
from ..integers import MOST, divide
from ..script import inline
from ..spec.coordinate_index import GRID, HASH, PLAN_METHOD
from ..spec.unique import FillUnique, PlanUnique, RankUnique
from .atomics import atomic_min, atomic_or
from .coordinate_index import plan_box
from .extremes import find_extremes
from .gpu import Gpu, kernel_name, stating
from .guards import match_status, report, reporting
from .launch import for_each
from .scan import SCAN_REGISTERS, exclusive_scan
from .sort import sort_pairs
from .warp import count_bits, count_bits_below

SORT = HASH  # the method where no grid fits
WORD = 32  # cells of a word
LOG_WORD = 5
KEY_BITS = 63
NO_KEYS = 1  # entries of the keys of a grid, which has none; those of a sort are more


@cache
def plan_unique(spec: PlanUnique, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `PlanUnique`: size = (words of a grid, keys of a sort), 1 of what is unused.

    ValueError for `method="grid"` when the box has more cells than a grid may.
    """
    factors, method, low, high = (1, *spec.factor), spec.method, spec.low, spec.high

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, status_: T.handle, plan_: T.handle, size_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("plan_unique")})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        status = T.meta_var(match_status(status_))
        plan = T.meta_var(match_plan(plan_))
        size = match_buffer(size_, (2,), "int64")
        extremes = T.meta_var(find_extremes(status, coords, rows, low, high))
        with T.launch_thread("blockIdx.x", 1):
            T.launch_thread("threadIdx.x", 1)
            cells = T.alloc_local((1,), "int64")
            extremes.report(status, "coords")
            plan_box(plan, extremes, factors)
            count_cells(plan, cells, grid_limit(rows) if method == "auto" else T.int64(GRID_CELLS_MOST))
            check_grid(method, plan, cells, lambda refusal, *arguments: report(status, refusal, *arguments))
            if T.And(T.bool(method != "sort"), cells[0] >= 0):
                plan.entries[PLAN_METHOD] = T.int64(GRID)
                size[0] = T.max((cells[0] + (WORD - 1)) // WORD, T.int64(1))
                size[1] = T.int64(NO_KEYS)
            else:
                plan.entries[PLAN_METHOD] = T.int64(SORT)
                size[0] = T.int64(1)
                size[1] = rows + (NO_KEYS + 1)

    one, keys = LinearBound(0, 1), LinearBound(1, NO_KEYS + 1)
    most = GRID_CELLS_MOST // WORD
    words = LinearBound(0, most)
    if method == "auto":
        words = LinearBound(-(-GRID_CELLS_PER_ROW // WORD), GRID_CELLS_FREE // WORD + 1, most)
    sizes = {"auto": [[one, words], [one, keys]], "grid": [[one, words], [one, keys]], "sort": [[one], [keys]]}
    return reporting(with_bounds(kernel, size=sizes[method]))


@cache
def rank_unique(spec: RankUnique, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `RankUnique`. The keys that there is room for tell the host which method was chosen."""
    factor = spec.factor

    def divided(coords, row):
        return (coords[row, 0], *(divide(coords[row, axis + 1], factor[axis]) for axis in range(3)))

    @inline
    def clear_word(words, place):
        words[place] = T.int32(0)

    @inline
    def mark(coords, plan, words, row):
        cell = T.alloc_local((1,), "int32")
        cell[0] = plan.cell_of(divided(coords, row), "int32")
        T.evaluate(atomic_or(words, cell[0] >> LOG_WORD, T.shift_left(T.int32(1), cell[0] & (WORD - 1))))

    @inline
    def number(coords, plan, words, ranks, inverse, row):
        cell = T.alloc_local((1,), "int32")
        cell[0] = plan.cell_of(divided(coords, row), "int32")
        inverse[row] = ranks[cell[0] >> LOG_WORD] + count_bits_below(words[cell[0] >> LOG_WORD], cell[0] & (WORD - 1))

    @inline
    def note_count(count, value):
        count[0] = value

    @inline
    def rank_grid(coords, plan, words, inverse, count, rows, num_words):
        ranks = T.alloc_buffer((num_words + 1,), "int32")
        for_each(num_words, lambda place: clear_word(words, place))
        for_each(rows, lambda row: mark(coords, plan, words, row))
        exclusive_scan(lambda place: count_bits(words[place]), ranks, num_words)
        for_each(rows, lambda row: number(coords, plan, words, ranks, inverse, row))
        for_each(T.int64(1), lambda place: note_count(count, T.Cast("int64", ranks[num_words])))

    @inline
    def note_key(coords, keys, row):
        keys[row] = key_of(divided(coords, row))

    def is_new(keys, place):
        """Whether a key of those in order, but the first, is another one than that before it."""
        return T.Cast("int32", T.And(place > 0, keys[place] != keys[T.max(place - 1, T.int64(0))]))

    @inline
    def number_sorted(ranks, order, inverse, place):
        inverse[order[place]] = ranks[place + 1]

    @inline
    def rank_sorted(coords, keys, inverse, count, rows):
        ascending = T.alloc_buffer((rows,), "int64")
        order = T.alloc_buffer((rows,), "int32")
        ranks = T.alloc_buffer((rows + 1,), "int32")
        for_each(rows, lambda row: note_key(coords, keys, row))
        sort_pairs(keys, None, ascending, order, rows, KEY_BITS)
        exclusive_scan(lambda place: is_new(ascending, place), ranks, rows)
        for_each(rows, lambda place: number_sorted(ranks, order, inverse, place))
        for_each(T.int64(1), lambda place: note_count(count, T.Cast("int64", ranks[rows]) + T.Cast("int64", rows > 0)))

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, words_: T.handle, keys_: T.handle, inverse_: T.handle, count_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("rank_unique")})
        rows, num_words, num_keys = T.int64(), T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = T.meta_var(match_plan(plan_))
        words = match_buffer(words_, (num_words,), "int32")
        keys = match_buffer(keys_, (num_keys,), "int64")
        inverse = match_buffer(inverse_, (rows,), "int32")
        count = match_buffer(count_, (1,), "int64")
        # Loops of one step or none, as TVM refuses to add barriers to what stands in branches, those of the host too.
        for _ in range(T.Cast("int64", num_keys == NO_KEYS)):
            rank_grid(coords, plan, words, inverse, count, rows, num_words)
        for _ in range(T.Cast("int64", num_keys != NO_KEYS)):
            rank_sorted(coords, keys, inverse, count, rows)

    return stating(with_bounds(kernel, count=[[LinearBound(1)]]), SCAN_REGISTERS)  # more than the sort


@cache
def fill_unique(spec: FillUnique, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `FillUnique`. The first row of those that are equal writes."""
    factor = spec.factor

    @inline
    def clear_row(first, place):
        first[place] = T.int32(MOST)

    @inline
    def note_row(inverse, first, row):
        T.evaluate(atomic_min(first, inverse[row], T.Cast("int32", row)))

    @inline
    def write(coords, first, out, place):
        row: T.let = T.Cast("int64", first[place])
        out[place, 0] = coords[row, 0]
        out[place, 1] = divide(coords[row, 1], factor[0])
        out[place, 2] = divide(coords[row, 2], factor[1])
        out[place, 3] = divide(coords[row, 3], factor[2])

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, inverse_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("fill_unique")})
        rows, unique = T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        inverse = match_buffer(inverse_, (rows,), "int32")
        out = match_buffer(out_, (unique, 4), "int32")
        first = T.alloc_buffer((unique,), "int32")
        for_each(unique, lambda place: clear_row(first, place))
        for_each(rows, lambda row: note_row(inverse, first, row))
        for_each(unique, lambda place: write(coords, first, out, place))

    return kernel
