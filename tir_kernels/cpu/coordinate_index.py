"""From coordinates to row numbers: a padded dense grid where the bounding box is small, an open-addressing hash otherwise.

Both hold the same thing, so everything built from them is equal bit for bit. `plan_index` looks at the coordinates and
chooses; `build_index` fills; kernels that look rows up inline `find`. An index is three arrays:

    plan   int64 [PLAN_SIZE]  method, origin and extent of the bounding box (see the constants below)
    slots  int32 [S]          rows, or -1, of the cells of a grid and of SPARE more; of the buckets of a hash, S = 4 T places
    keys   int64 [T]          hash: key of each bucket, or -1 where it is free; grid: unused, T = 1
"""

from dataclasses import dataclass
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..bounds import with_bounds
from ..buffers import match_buffer, named
from ..coordinates import (
    BUCKET,
    BUCKET_BITS,
    GRID_CELLS_PER_ROW,
    Plan,
    choose,
    coordinate,
    home_bucket,
    index_bounds,
    key_of,
    match_plan,
)
from ..granting import check_memory
from ..guards import RAISE_DUPLICATE
from ..script import inline
from ..sharing import shared
from ..spec.coordinate_index import (
    GRID,
    PLAN_EXTENT,
    PLAN_MARGIN,
    PLAN_ORIGIN,
    PLAN_PAD,
    PLAN_ROWS,
    PLAN_SIZE,
    BuildIndex,
    Lookup,
    PlanIndex,
)
from .guards import check_range, extremes, refuse
from .isa import Isa

# Empty cells behind the box: so far outside of it taps find nothing without a check, those of kernels of 3^3 and 5^3 and of
# strided ones of 3^3. The end of a line is the space before the next one's start. Along x and y flat sets have none.
PAD = 2
LINE_PAD = 4  # along z
MARGIN = 8  # cells at the start of a grid that are always empty
FILL_CHUNK = 16384
ROWS_ALONE = 4096  # rows of a grid that one thread inserts
CELLS_ALONE = 1 << 16  # and cells that it clears
ROW_CHUNK = 4096  # rows of one task in other kernels on coordinates
OWN_CHUNK = 512  # rows of which a task knows whether any may be its own, see `Parts`
PARTS_MOST = 16
PART_UNIT = 16  # int32 cells of a cache line
SPARE = PARTS_MOST * PART_UNIT  # cells at the end of a grid, see `Parts`


@dataclass(frozen=True, eq=False)
class HashTable:
    """The buffers `slots` int32 [BUCKET * T] and `keys` int64 [T] of a hash, which has T buckets."""

    slots: object
    keys: object

    @property
    def buckets(self):
        return self.keys.shape[0]

    def place(self, bucket, key):
        """The slot of `key` in its bucket."""
        return bucket * BUCKET + (key & (BUCKET - 1))

    @inline
    def find_bucket(self, bucket_key, bucket, place=0):
        """bucket[place] = the bucket of `bucket_key`, or the free one where it belongs."""
        bucket[place] = home_bucket(bucket_key, self.buckets)
        while T.And(self.keys[bucket[place]] != -1, self.keys[bucket[place]] != bucket_key):
            bucket[place] = T.if_then_else(bucket[place] + 1 == self.buckets, T.int64(0), bucket[place] + 1)

    @inline
    def insert(self, key, row, found):
        """Insert (key, row) unless the key is there; found[0] is the row that the key has afterwards."""
        bucket = T.alloc_buffer((1,), "int64")
        self.find_bucket(key >> BUCKET_BITS, bucket)
        self.keys[bucket[0]] = key >> BUCKET_BITS
        found[0] = self.slots[self.place(bucket[0], key)]
        if found[0] < 0:
            self.slots[self.place(bucket[0], key)] = row
            found[0] = row

    @inline
    def find(self, key, found):
        """found[0] = row of `key`, or -1 (the places of a free bucket hold -1)."""
        bucket = T.alloc_buffer((1,), "int64")
        self.find_bucket(key >> BUCKET_BITS, bucket)
        found[0] = self.slots[self.place(bucket[0], key)]


@dataclass(frozen=True, eq=False)
class Index:
    """An index of either method: its plan, and `table`, of which a grid uses the slots only."""

    plan: Plan
    table: HashTable

    @property
    def slots(self):
        return self.table.slots

    @property
    def num_slots(self):
        return self.table.slots.shape[0]

    @inline
    def find(self, coordinate, found):
        """found[0] = row of any coordinate, or -1. Far outside of the box no key could be formed."""
        found[0] = T.int32(-1)
        if self.plan.contains(coordinate):
            if self.plan.method == GRID:
                found[0] = self.slots[self.plan.cell_of(coordinate)]
            else:
                self.table.find(key_of(coordinate), found)


def match_index(plan, slots, keys):
    """The `Index` in three of a kernel's parameters, for `T.meta_var`."""
    num_slots, num_keys = tvm.tirx.Var("num_slots", "int64"), tvm.tirx.Var("num_keys", "int64")
    table = HashTable(
        named("slots", match_buffer(slots, (num_slots,), "int32")), named("keys", match_buffer(keys, (num_keys,), "int64"))
    )
    return Index(match_plan(plan), table)


@inline
def begin_plan(plan, coords, rows, lowest, highest, low, high, argument="coords"):
    """An empty plan, and the extremes of the coordinates; raise for the first row outside of [low, high]."""
    extremes(coords, rows, lowest, highest)
    check_range(coords, rows, lowest, highest, low, high, argument)
    for entry in range(PLAN_SIZE):
        plan.entries[entry] = T.int64(0)


@cache
def plan_index(spec: PlanIndex, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `PlanIndex`. ValueError for `method="grid"` when the box has more than GRID_CELLS_MOST cells."""
    method, low, high, argument = spec.method, spec.low, spec.high, spec.argument

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, size_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "plan_index"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = T.meta_var(match_plan(plan_))
        size = match_buffer(size_, (2,), "int64")
        lowest = T.alloc_buffer((4,), "int32")
        highest = T.alloc_buffer((4,), "int32")
        cells = T.alloc_buffer((1,), "int64")
        begin_plan(plan, coords, rows, lowest, highest, low, high, argument)
        plan.entries[PLAN_ROWS] = rows
        plan_box(plan, lowest, highest)
        choose(method, rows, GRID_CELLS_PER_ROW, plan, size, cells, refuse, SPARE)
        check_memory("index of coordinates", (("int32", (size[0],)), ("int64", (size[1],))))

    return shared(with_bounds(kernel, size=index_bounds(method, spare=SPARE)))


def plan_box(plan, lowest, highest):
    """Emit: origin and extent of the box from `lowest` to `highest`, and the empty cells of taps that reach out of it."""

    @inline
    def axis_box(axis):
        plan.entries[PLAN_ORIGIN + axis] = T.Cast("int64", lowest[axis])
        plan.entries[PLAN_EXTENT + axis] = T.Cast("int64", highest[axis]) - T.Cast("int64", lowest[axis]) + 1

    @inline
    def pad_box(axis):
        plan.entries[PLAN_PAD + axis] = (
            T.if_then_else(plan.extent(axis + 1) > 1, T.int64(PAD), T.int64(0)) if axis < 2 else T.int64(LINE_PAD)
        )
        plan.entries[PLAN_EXTENT + axis + 1] = plan.extent(axis + 1) + plan.pad(axis)

    @inline
    def set_margin():
        plan.entries[PLAN_MARGIN] = (plan.pad(0) * plan.extent(2) + plan.pad(1)) * plan.extent(3) + plan.pad(2) + MARGIN

    for axis in range(4):
        axis_box(axis)
    for axis in range(3):
        pad_box(axis)
    set_margin()


@inline
def fill(buffer, size, value):
    """buffer [size] = value, in parallel chunks."""
    for chunk in T.parallel((size + FILL_CHUNK - 1) // FILL_CHUNK):
        for i in range(T.min(T.int64(FILL_CHUNK), size - chunk * FILL_CHUNK)):
            buffer[chunk * FILL_CHUNK + i] = value


@dataclass(frozen=True, eq=False)
class RowCells:
    """The cell of every row, and the buffers that say which chunks of OWN_CHUNK rows meet a part of the cells.

    `cells` int32 [rows]; `lowest`, `highest` int32 [chunks]: the least and the greatest cell of the rows of a chunk.
    """

    cells: object
    rows: object
    lowest: object
    highest: object

    @inline
    def note_extremes(self, chunk):
        """lowest[chunk], highest[chunk]: of the cells of the chunk's rows."""
        least = T.alloc_buffer((1,), "int32")
        most = T.alloc_buffer((1,), "int32")
        least[0] = T.int32(2147483647)
        most[0] = T.int32(-1)
        for i in range(T.min(T.int64(OWN_CHUNK), self.rows - chunk * OWN_CHUNK)):
            least[0] = T.min(least[0], self.cells[chunk * OWN_CHUNK + i])
            most[0] = T.max(most[0], self.cells[chunk * OWN_CHUNK + i])
        self.lowest[chunk] = least[0]
        self.highest[chunk] = most[0]

    @property
    def chunks(self):
        return (self.rows + OWN_CHUNK - 1) // OWN_CHUNK

    @inline
    def number_chunk(self, chunk, cell_of_row):
        """cells[row] = cell_of_row(row), a TIR expression, for the rows of a chunk; and its extremes."""
        for i in range(T.min(T.int64(OWN_CHUNK), self.rows - chunk * OWN_CHUNK)):
            self.cells[chunk * OWN_CHUNK + i] = T.Cast("int32", cell_of_row(chunk * OWN_CHUNK + i))
        self.note_extremes(chunk)

    @inline
    def number(self, cell_of_row):
        """The cells of all rows, and the extremes of every chunk."""
        for chunk in T.parallel(self.chunks):
            self.number_chunk(chunk, cell_of_row)

    @inline
    def insert(self, target, part):
        """target[cells[row]] = row, the last one, for all cells of a part of the buffer `target`."""
        for chunk in range((self.rows + OWN_CHUNK - 1) // OWN_CHUNK):
            if T.And(T.Cast("int64", self.lowest[chunk]) < part.end, T.Cast("int64", self.highest[chunk]) >= part.first):
                for i in range(T.min(T.int64(OWN_CHUNK), self.rows - chunk * OWN_CHUNK)):
                    # rows of other parts write too: no branch to mispredict
                    cell: T.let = T.Cast("int64", self.cells[chunk * OWN_CHUNK + i])
                    place: T.let = T.Select(T.And(cell >= part.first, cell < part.end), cell, part.spare)
                    target[place] = T.Cast("int32", chunk * OWN_CHUNK + i)

    @inline
    def insert_once(self, target, part, repeats):
        """As `insert` into cells that hold -1; repeats[0] = 1 if a cell of the part got two rows, else 0."""
        repeats[0] = T.int32(0)
        for chunk in range(self.chunks):
            if T.And(T.Cast("int64", self.lowest[chunk]) < part.end, T.Cast("int64", self.highest[chunk]) >= part.first):
                for i in range(T.min(T.int64(OWN_CHUNK), self.rows - chunk * OWN_CHUNK)):
                    cell: T.let = T.Cast("int64", self.cells[chunk * OWN_CHUNK + i])
                    own: T.let = T.And(cell >= part.first, cell < part.end)
                    place: T.let = T.Select(own, cell, part.spare)
                    repeats[0] = repeats[0] | T.Cast("int32", T.And(own, target[place] >= 0))
                    target[place] = T.Cast("int32", chunk * OWN_CHUNK + i)


@dataclass(frozen=True, eq=False)
class Part:
    """Cells from `first` to `end` that one task owns, and its own cell `spare` outside of all parts: TIR expressions."""

    first: object
    end: object
    spare: object

    @property
    def count(self):
        return T.max(self.end - self.first, T.int64(0))


@dataclass(frozen=True, eq=False)
class Parts:
    """`size` cells in count[0] parts of each[0]: one for every thread, each of whole cache lines.

    A part belongs to one task, which looks through all rows for those that meet it: no cell has two writers, whatever the
    rows. What it finds in vain it writes to SPARE cells behind the last, of which every task has its own.
    """

    size: object
    count: object
    each: object

    @inline
    def split(self):
        self.split_among(T.Cast("int64", T.call_packed("runtime.NumThreads")))

    @inline
    def split_among(self, tasks):
        self.count[0] = T.min(tasks, T.int64(PARTS_MOST))
        self.each[0] = (self.size + self.count[0] * PART_UNIT - 1) // (self.count[0] * PART_UNIT) * PART_UNIT

    def first(self, i):
        """Where the part of task `i` begins."""
        return i * self.each[0]

    def part(self, i, first) -> Part:
        """The part of task `i`, from `first` on."""
        return Part(first, T.min(first + self.each[0], self.size), self.size + i * PART_UNIT)


@inline
def report_duplicate(coords, rows, index, argument):
    """Raise for the first row of a grid that repeats an earlier one: insert again, one by one."""
    for row in range(rows):
        index.slots[index.plan.cell_of(coordinate(coords, row))] = T.int32(-1)
    for row in range(rows):
        cell: T.let = index.plan.cell_of(coordinate(coords, row))
        if index.slots[cell] >= 0:
            T.evaluate(T.call_packed(RAISE_DUPLICATE, row, index.slots[cell], argument))
        index.slots[cell] = T.Cast("int32", row)


@inline
def insert_rows(coords, index, numbered, tasks, loop, argument):
    """Fill a grid, in two loops of `loop` (`T.parallel` or `T.serial`): clear a part and number some rows, then insert them."""
    count = T.alloc_buffer((1,), "int64")
    each = T.alloc_buffer((1,), "int64")
    repeats = T.alloc_buffer((PARTS_MOST * PART_UNIT,), "int32")
    parts = T.meta_var(Parts(index.num_slots - SPARE, count, each))
    parts.split_among(tasks)
    for i in loop(count[0]):
        first: T.let = parts.first(i)
        part = T.meta_var(parts.part(i, first))
        for cell in range(part.count):
            index.slots[part.first + cell] = T.int32(-1)
        for j in range((numbered.chunks - i + count[0] - 1) // count[0]):
            numbered.number_chunk(j * count[0] + i, lambda row: index.plan.cell_of(coordinate(coords, row), "int32"))
    for i in loop(count[0]):
        repeated = T.alloc_buffer((1,), "int32")
        first: T.let = parts.first(i)
        part = T.meta_var(parts.part(i, first))
        numbered.insert_once(index.slots, part, repeated)
        repeats[i * PART_UNIT] = repeated[0]
    for i in range(count[0]):
        if repeats[i * PART_UNIT] != 0:
            report_duplicate(coords, numbered.rows, index, argument)


@cache
def build_index(spec: BuildIndex, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `BuildIndex`."""
    argument = spec.argument

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, slots_: T.handle, keys_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "build_index"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        index = T.meta_var(match_index(plan_, slots_, keys_))
        slots = T.meta_var(index.slots)
        if index.plan.method == GRID:
            cells = T.alloc_buffer((rows,), "int32")
            lowest = T.alloc_buffer(((rows + OWN_CHUNK - 1) // OWN_CHUNK,), "int32")
            highest = T.alloc_buffer(((rows + OWN_CHUNK - 1) // OWN_CHUNK,), "int32")
            numbered = T.meta_var(RowCells(cells, rows, lowest, highest))
            if T.And(rows <= ROWS_ALONE, index.num_slots <= CELLS_ALONE):  # before other threads woke up this one is done
                insert_rows(coords, index, numbered, T.int64(1), T.serial, argument)
            else:
                insert_rows(coords, index, numbered, T.Cast("int64", T.call_packed("runtime.NumThreads")), T.parallel, argument)
        else:
            found = T.alloc_buffer((1,), "int32")
            fill(slots, index.num_slots, T.int32(-1))
            fill(index.table.keys, index.table.buckets, T.int64(-1))
            for row in range(rows):
                index.table.insert(key_of(coordinate(coords, row)), T.Cast("int32", row), found)
                if T.Cast("int64", found[0]) != row:
                    T.evaluate(T.call_packed(RAISE_DUPLICATE, row, found[0], argument))

    return shared(kernel)


@cache
def lookup(spec: Lookup, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Lookup`."""

    @script.prim_func(s_tir=True)
    def kernel(queries_: T.handle, plan_: T.handle, slots_: T.handle, keys_: T.handle, rows_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "lookup"})
        count = T.int64()
        queries = match_buffer(queries_, (count, 4), "int32")
        index = T.meta_var(match_index(plan_, slots_, keys_))
        rows = match_buffer(rows_, (count,), "int32")
        for chunk in T.parallel((count + 255) // 256):
            found = T.alloc_buffer((1,), "int32")
            for i in range(T.min(T.int64(256), count - chunk * 256)):
                index.find(coordinate(queries, chunk * 256 + i), found)
                rows[chunk * 256 + i] = found[0]

    return kernel
