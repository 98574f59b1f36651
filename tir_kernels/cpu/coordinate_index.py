"""From coordinates to row numbers: a padded dense grid where the bounding box is small, an open-addressing hash otherwise.

Both hold the same thing, so everything built from them is equal bit for bit. `plan_index` looks at the coordinates and
chooses; `build_index` fills; kernels that look rows up inline `find`. An index is three arrays:

    plan   int64 [PLAN_SIZE]  method, origin and extent of the bounding box (see the constants below)
    slots  int32 [S]          rows, or -1, of the cells of a grid and of SPARE more; of the buckets of a hash, S = 4 T places
    keys   int64 [T]          hash: key of each bucket, or -1 where it is free; grid: unused, T = 1

The key of a coordinate has 63 bits: 12 of batch, then 17 for each of x, y, z, biased by 2^16. Batch indices run from 0 to
4095 and coordinates from -32768 to 32767, which leaves room for taps that reach up to 32768 beyond: a neighbour's key is
formed without a check and never wraps into another axis. Four voxels that follow each other along z share a bucket, found
by its key without the last two bits, so that the taps of one (x, y) column meet one or two buckets.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..bounds import Linear, with_bounds
from ..buffers import match_buffer
from ..guards import RAISE_DUPLICATE, RAISE_GRID
from ..script import inline
from ..spec.coordinate_index import (
    GRID,
    HASH,
    PLAN_EXTENT,
    PLAN_METHOD,
    PLAN_ORIGIN,
    PLAN_ROWS,
    PLAN_SIZE,
    BuildIndex,
    Lookup,
    PlanIndex,
)
from .guards import check_range, extremes
from .isa import Isa

FILL_CHUNK = 16384
ROW_CHUNK = 4096  # rows that one task checks or inserts
OWN_CHUNK = 512  # rows of which a task knows whether any may be its own, see `split`
PARTS_MOST = 16
PART_UNIT = 16  # int32 cells of a cache line
SPARE = PARTS_MOST * PART_UNIT  # cells at the end of a grid, see `split`


# A grid takes 4 bytes a cell, and the time to clear them; a hash 48 bytes a row, and some slow probes. Index and map of a 3^3
# convolution, 2,000 to 130,000 voxels, measured on one and two threads of an Ice Lake server: the grid is 2.6 to 14 times as
# fast at 8 to 32 cells a voxel, 1.6 to 3.3 times at 64, 1.1 to 2.7 times at 128, and mostly slower at 256. It ends at 64, where
# it takes 256 bytes a voxel, about what the pairs of such a map take (216): twice the memory would gain little or nothing.
GRID_CELLS_PER_ROW = 64
GRID_CELLS_PER_SITE = 24  # of output sites that may be: at most twice the bytes of a hash, which has room for all of them
GRID_CELLS_FREE = 1 << 16  # always granted: 256 KiB, cleared in some ten microseconds
GRID_CELLS_MOST = 1 << 28  # of any grid, also where one is asked for: 1 GiB

KEY_BITS = 17
KEY_BIAS = 1 << 16
BUCKET_BITS = 2  # of z: four neighbours along z share a bucket
BUCKET = 1 << BUCKET_BITS
HASH_FACTOR = 0x27BB2EE687B0B0FD  # odd, about 2^62 / golden ratio (Knuth, TAOCP 6.4); TIR constants end at 2^63


def key_of(batch, x, y, z):
    """The 63-bit key of a coordinate, from TIR expressions of any integer type."""
    key = T.Cast("int64", batch)
    for value in (x, y, z):
        key = (key << KEY_BITS) | (T.Cast("int64", value) + KEY_BIAS)
    return key


def home_bucket(bucket_key, buckets):
    """The bucket where the search for `bucket_key` starts, of `buckets` in all."""
    hashed = (T.Cast("uint64", bucket_key) * T.uint64(HASH_FACTOR)) >> T.uint64(32)
    return T.Cast("int64", (hashed * T.Cast("uint64", buckets)) >> T.uint64(32))


def cell_of(plan, batch, x, y, z):
    """The grid cell of a coordinate inside the padded box, from TIR expressions."""
    cell = T.Cast("int64", batch) - plan[PLAN_ORIGIN]
    for axis, value in enumerate((x, y, z), start=1):
        cell = cell * plan[PLAN_EXTENT + axis] + (T.Cast("int64", value) - plan[PLAN_ORIGIN + axis])
    return cell


def grid_limit(rows, cells_per_row: int = GRID_CELLS_PER_ROW):
    """The most cells that "auto" gives the grid of `rows` rows, a TIR expression."""
    return T.min(rows * cells_per_row + GRID_CELLS_FREE, T.int64(GRID_CELLS_MOST))


def grid_bound(method: str, entries_per_row: int = 1, cells_per_row: int = GRID_CELLS_PER_ROW) -> Linear:
    """The most slots of a grid, with SPARE. `entries_per_row`: what is inserted for each row of the coordinates."""
    if method == "grid":
        return Linear(0, GRID_CELLS_MOST + SPARE)
    return Linear(entries_per_row * cells_per_row, GRID_CELLS_FREE + SPARE, GRID_CELLS_MOST + SPARE)


def index_bounds(method: str, entries_per_row: int = 1, cells_per_row: int = GRID_CELLS_PER_ROW) -> list[list[Linear]]:
    """The most slots and keys of an index, whatever the coordinates; see `choose`."""
    grid, one = grid_bound(method, entries_per_row, cells_per_row), Linear(0, 1)
    slots, keys = Linear(2 * BUCKET * entries_per_row, BUCKET), Linear(2 * entries_per_row, 1)
    return {"auto": [[grid, slots], [keys]], "grid": [[grid], [one]], "hash": [[slots], [keys]]}[method]


@inline
def count_cells(plan, cells, limit):
    """cells[0] = cells of the box in `plan`, or -1 where there are more than `limit`."""
    cells[0] = T.int64(1)
    for axis in T.unroll(4):
        if cells[0] >= 0:
            cells[0] = cells[0] * plan[PLAN_EXTENT + axis]
        if cells[0] > T.int64(GRID_CELLS_MOST):
            cells[0] = T.int64(-1)  # stop multiplying: the product may pass 2^63
    if cells[0] > limit:
        cells[0] = T.int64(-1)


@inline
def check_grid(method, plan, cells):
    """Raise where a grid is asked for and the box is too large; `method` is a Python string."""
    if T.bool(method == "grid"):
        if cells[0] < 0:
            T.evaluate(
                T.call_packed(
                    RAISE_GRID,
                    plan[PLAN_EXTENT],
                    plan[PLAN_EXTENT + 1],
                    plan[PLAN_EXTENT + 2],
                    plan[PLAN_EXTENT + 3],
                    T.int64(GRID_CELLS_MOST),
                )
            )


@inline
def choose(method, rows, cells_per_row, plan, size):
    """Fill plan[PLAN_METHOD] and size [2] (slots, keys) from the box in `plan`; `method` is a Python string."""
    cells = T.alloc_buffer((1,), "int64")
    count_cells(plan, cells, grid_limit(rows, cells_per_row) if method == "auto" else T.int64(GRID_CELLS_MOST))
    check_grid(method, plan, cells)
    if T.And(T.bool(method != "hash"), cells[0] >= 0):
        plan[PLAN_METHOD] = T.int64(GRID)
        size[0] = cells[0] + SPARE
        size[1] = T.int64(1)
    else:
        plan[PLAN_METHOD] = T.int64(HASH)
        size[1] = rows * 2 + 1  # at most half of the buckets are taken, even if no two voxels share one
        size[0] = size[1] * BUCKET


@cache
def plan_index(spec: PlanIndex, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `PlanIndex`. ValueError for `method="grid"` when the box has more than GRID_CELLS_MOST cells."""
    pad, method, low, high = spec.pad, spec.method, spec.low, spec.high

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, size_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "plan_index"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = match_buffer(plan_, (PLAN_SIZE,), "int64")
        size = match_buffer(size_, (2,), "int64")
        lowest = T.alloc_buffer((4,), "int32")
        highest = T.alloc_buffer((4,), "int32")
        extremes(coords, rows, lowest, highest)
        check_range(coords, rows, lowest, highest, low, high)
        for entry in range(PLAN_SIZE):
            plan[entry] = T.int64(0)
        plan[PLAN_ROWS] = rows
        plan_box(plan, lowest, highest, pad)
        choose(method, rows, GRID_CELLS_PER_ROW, plan, size)

    return with_bounds(kernel, size=index_bounds(method))


def plan_box(plan, lowest, highest, pad):
    """Emit: origin and extent of the box from `lowest` to `highest`, padded along x, y, z."""

    @inline
    def axis_box(axis, reach):
        plan[PLAN_ORIGIN + axis] = T.Cast("int64", lowest[axis]) - reach
        plan[PLAN_EXTENT + axis] = T.Cast("int64", highest[axis]) - T.Cast("int64", lowest[axis]) + 1 + 2 * reach

    for axis, reach in enumerate((0, *pad)):
        axis_box(axis, reach)


@inline
def find_bucket(keys, buckets, bucket_key, bucket):
    """bucket[0] = the bucket of `bucket_key`, or the free one where it belongs."""
    bucket[0] = home_bucket(bucket_key, buckets)
    while T.And(keys[bucket[0]] != -1, keys[bucket[0]] != bucket_key):
        bucket[0] = T.if_then_else(bucket[0] + 1 == buckets, T.int64(0), bucket[0] + 1)


@inline
def insert_key(keys, slots, buckets, key, row, found):
    """Insert (key, row) into a hash unless the key is there; found[0] is the row that the key has afterwards."""
    bucket = T.alloc_buffer((1,), "int64")
    find_bucket(keys, buckets, key >> BUCKET_BITS, bucket)
    keys[bucket[0]] = key >> BUCKET_BITS
    found[0] = slots[bucket[0] * BUCKET + (key & (BUCKET - 1))]
    if found[0] < 0:
        slots[bucket[0] * BUCKET + (key & (BUCKET - 1))] = row
        found[0] = row


@inline
def find_key(keys, slots, buckets, key, found):
    """found[0] = row of `key` in a hash, or -1 (the places of a free bucket hold -1)."""
    bucket = T.alloc_buffer((1,), "int64")
    find_bucket(keys, buckets, key >> BUCKET_BITS, bucket)
    found[0] = slots[bucket[0] * BUCKET + (key & (BUCKET - 1))]


def in_box(plan, batch, x, y, z):
    """Whether a coordinate lies in the padded box, from TIR expressions: one unsigned comparison an axis."""
    inside = T.bool(True)
    for axis, value in enumerate((batch, x, y, z)):
        place = T.Cast("uint64", T.Cast("int64", value) - plan[PLAN_ORIGIN + axis])
        inside = inside & (place < T.Cast("uint64", plan[PLAN_EXTENT + axis]))
    return inside


@inline
def find(plan, slots, keys, buckets, batch, x, y, z, found):
    """found[0] = row of any coordinate, in an index of either method, or -1."""
    if plan[PLAN_METHOD] == GRID:
        found[0] = T.int32(-1)
        if in_box(plan, batch, x, y, z):
            found[0] = slots[cell_of(plan, batch, x, y, z)]
    else:
        find_key(keys, slots, buckets, key_of(batch, x, y, z), found)


@inline
def fill(buffer, size, value):
    """buffer [size] = value, in parallel chunks."""
    for chunk in T.parallel((size + FILL_CHUNK - 1) // FILL_CHUNK):
        for i in range(T.min(T.int64(FILL_CHUNK), size - chunk * FILL_CHUNK)):
            buffer[chunk * FILL_CHUNK + i] = value


@inline
def note_extremes(cells, rows, chunk, lowest, highest):
    """lowest[chunk], highest[chunk]: of the cells of the chunk's rows."""
    least = T.alloc_buffer((1,), "int32")
    most = T.alloc_buffer((1,), "int32")
    least[0] = T.int32(2147483647)
    most[0] = T.int32(-1)
    for i in range(T.min(T.int64(OWN_CHUNK), rows - chunk * OWN_CHUNK)):
        least[0] = T.min(least[0], cells[chunk * OWN_CHUNK + i])
        most[0] = T.max(most[0], cells[chunk * OWN_CHUNK + i])
    lowest[chunk] = least[0]
    highest[chunk] = most[0]


@inline
def number_rows(number, rows, cells, lowest, highest):
    """cells[row] = number(row), a TIR expression; their extremes for every OWN_CHUNK rows."""
    for chunk in T.parallel((rows + OWN_CHUNK - 1) // OWN_CHUNK):
        for i in range(T.min(T.int64(OWN_CHUNK), rows - chunk * OWN_CHUNK)):
            cells[chunk * OWN_CHUNK + i] = T.Cast("int32", number(chunk * OWN_CHUNK + i))
        note_extremes(cells, rows, chunk, lowest, highest)


@inline
def split(size, parts, per_part):
    """Split `size` cells into parts[0] parts of per_part[0]: one for every thread, each of whole cache lines.

    A part belongs to one task, which looks through all rows for those that meet it: no cell has two writers, whatever the
    rows. What it finds in vain it writes to SPARE cells behind the last, of which every task has its own.
    """
    parts[0] = T.min(T.Cast("int64", T.call_packed("runtime.NumThreads")), T.int64(PARTS_MOST))
    per_part[0] = (size + parts[0] * PART_UNIT - 1) // (parts[0] * PART_UNIT) * PART_UNIT


@inline
def insert_own(cells, rows, lowest, highest, slots, part, first, end, spare):
    """slots[cells[row]] = row, the last one, for all cells from `first` to `end`."""
    for chunk in range((rows + OWN_CHUNK - 1) // OWN_CHUNK):
        if T.And(T.Cast("int64", lowest[chunk]) < end, T.Cast("int64", highest[chunk]) >= first):
            for i in range(T.min(T.int64(OWN_CHUNK), rows - chunk * OWN_CHUNK)):
                # rows of other parts write too: no branch to mispredict
                cell: T.let = T.Cast("int64", cells[chunk * OWN_CHUNK + i])
                place: T.let = T.Select(T.And(cell >= first, cell < end), cell, spare + part * PART_UNIT)
                slots[place] = T.Cast("int32", chunk * OWN_CHUNK + i)


@inline
def report_duplicate(coords, rows, plan, slots):
    """Raise for the first row of a grid that repeats an earlier one: insert again, one by one."""
    for row in range(rows):
        slots[cell_of(plan, coords[row, 0], coords[row, 1], coords[row, 2], coords[row, 3])] = T.int32(-1)
    for row in range(rows):
        cell: T.let = cell_of(plan, coords[row, 0], coords[row, 1], coords[row, 2], coords[row, 3])
        if slots[cell] >= 0:
            T.evaluate(T.call_packed(RAISE_DUPLICATE, row, slots[cell]))
        slots[cell] = T.Cast("int32", row)


@cache
def build_index(spec: BuildIndex, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `BuildIndex`."""

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, slots_: T.handle, keys_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "build_index"})
        rows, num_slots, num_keys = T.int64(), T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = match_buffer(plan_, (PLAN_SIZE,), "int64")
        slots = match_buffer(slots_, (num_slots,), "int32")
        keys = match_buffer(keys_, (num_keys,), "int64")
        if plan[PLAN_METHOD] == GRID:
            cells = T.alloc_buffer((rows,), "int32")
            lowest = T.alloc_buffer(((rows + OWN_CHUNK - 1) // OWN_CHUNK,), "int32")
            highest = T.alloc_buffer(((rows + OWN_CHUNK - 1) // OWN_CHUNK,), "int32")
            parts = T.alloc_buffer((1,), "int64")
            per_part = T.alloc_buffer((1,), "int64")
            clashes = T.alloc_buffer(((rows + OWN_CHUNK - 1) // OWN_CHUNK,), "int32")
            number_rows(
                lambda row: cell_of(plan, coords[row, 0], coords[row, 1], coords[row, 2], coords[row, 3]),
                rows,
                cells,
                lowest,
                highest,
            )
            split(num_slots - SPARE, parts, per_part)
            for part in T.parallel(parts[0]):
                first: T.let = part * per_part[0]
                end: T.let = T.min(first + per_part[0], num_slots - SPARE)
                for i in range(T.max(end - first, T.int64(0))):
                    slots[first + i] = T.int32(-1)
                insert_own(cells, rows, lowest, highest, slots, part, first, end, num_slots - SPARE)
            for chunk in T.parallel((rows + OWN_CHUNK - 1) // OWN_CHUNK):  # where two rows met, one no longer finds itself
                clash = T.alloc_buffer((1,), "int32")
                clash[0] = T.int32(0)
                for i in range(T.min(T.int64(OWN_CHUNK), rows - chunk * OWN_CHUNK)):
                    row: T.let = chunk * OWN_CHUNK + i
                    clash[0] = clash[0] | T.Cast("int32", slots[cells[row]] != T.Cast("int32", row))
                clashes[chunk] = clash[0]
            for chunk in range((rows + OWN_CHUNK - 1) // OWN_CHUNK):
                if clashes[chunk] != 0:
                    report_duplicate(coords, rows, plan, slots)
        else:
            found = T.alloc_buffer((1,), "int32")
            fill(slots, num_slots, T.int32(-1))
            fill(keys, num_keys, T.int64(-1))
            for row in range(rows):
                insert_key(
                    keys,
                    slots,
                    num_keys,
                    key_of(coords[row, 0], coords[row, 1], coords[row, 2], coords[row, 3]),
                    T.Cast("int32", row),
                    found,
                )
                if T.Cast("int64", found[0]) != row:
                    T.evaluate(T.call_packed(RAISE_DUPLICATE, row, found[0]))

    return kernel


@cache
def lookup(spec: Lookup, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Lookup`."""

    @script.prim_func(s_tir=True)
    def kernel(queries_: T.handle, plan_: T.handle, slots_: T.handle, keys_: T.handle, rows_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "lookup"})
        count, num_slots, num_keys = T.int64(), T.int64(), T.int64()
        queries = match_buffer(queries_, (count, 4), "int32")
        plan = match_buffer(plan_, (PLAN_SIZE,), "int64")
        slots = match_buffer(slots_, (num_slots,), "int32")
        keys = match_buffer(keys_, (num_keys,), "int64")
        rows = match_buffer(rows_, (count,), "int32")
        for chunk in T.parallel((count + 255) // 256):
            found = T.alloc_buffer((1,), "int32")
            for i in range(T.min(T.int64(256), count - chunk * 256)):
                find(
                    plan,
                    slots,
                    keys,
                    num_keys,
                    queries[chunk * 256 + i, 0],
                    queries[chunk * 256 + i, 1],
                    queries[chunk * 256 + i, 2],
                    queries[chunk * 256 + i, 3],
                    found,
                )
                rows[chunk * 256 + i] = found[0]

    return kernel
