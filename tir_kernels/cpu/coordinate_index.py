"""From coordinates to row numbers: a padded dense grid where the bounding box is small, an open-addressing hash otherwise.

Both hold the same thing, so everything built from them is equal bit for bit. `plan_index` looks at the coordinates and
chooses; `build_index` fills; kernels that look rows up inline `find`. An index is three arrays:

    plan   int64 [PLAN_SIZE]  method, origin and extent of the bounding box (see the constants below)
    slots  int32 [S]          rows, or -1, of the cells of a grid; of the buckets of a hash, S = 4 T places
    keys   int64 [T]          hash: key of each bucket, or -1 where it is free; grid: unused, T = 1

The key of a coordinate has 63 bits: 12 of batch, then 17 for each of x, y, z, biased by 2^16. Batch indices run from 0 to
4095 and coordinates from -32768 to 32767, which leaves room for taps that reach up to 32768 beyond: a neighbour's key is
formed without a check and never wraps into another axis. Four voxels that follow each other along z share a bucket, found
by its key without the last two bits, so that the taps of one (x, y) column meet one or two buckets.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_DUPLICATE, RAISE_RANGE
from ..script import inline

BATCH_LIMIT = 4096
COORDINATE_LIMIT = 32768
DEFAULT_LOW = (0, -COORDINATE_LIMIT, -COORDINATE_LIMIT, -COORDINATE_LIMIT)
DEFAULT_HIGH = (BATCH_LIMIT - 1, COORDINATE_LIMIT - 1, COORDINATE_LIMIT - 1, COORDINATE_LIMIT - 1)

FILL_CHUNK = 16384
ROW_CHUNK = 4096  # rows that one task checks or inserts

METHODS = ("auto", "grid", "hash")
GRID, HASH = 0, 1

PLAN_SIZE = 16
PLAN_METHOD = 0
PLAN_ORIGIN = 1  # 4 entries: lowest batch, x, y, z of the padded box
PLAN_EXTENT = 5  # 4 entries: cells of the padded box along each
PLAN_ROWS = 9  # rows of the coordinates

# A grid costs 4 bytes a cell to clear, a hash some 13 slow probes a voxel: the grid wins up to hundreds of cells a voxel.
GRID_CELLS_PER_ROW = 128
GRID_CELLS_FREE = 1 << 16
GRID_CELLS_MOST = 1 << 30

KEY_BITS = 17
KEY_BIAS = 1 << 16
BUCKET_BITS = 2  # of z: four neighbours along z share a bucket
BUCKET = 1 << BUCKET_BITS
HASH_FACTOR = 0x27BB2EE687B0B0FD  # odd, about 2^62 / golden ratio (Knuth, TAOCP 6.4); TIR constants end at 2^63


def naive(coords, queries):
    """Oracle. coords [N, 4], queries [M, 4] -> int32 [M]: the row of `coords` that equals each query, or -1."""
    rows = {tuple(coordinate): row for row, coordinate in enumerate(np.asarray(coords).tolist())}
    return np.array([rows.get(tuple(query), -1) for query in np.asarray(queries).tolist()], "int32").reshape(-1)


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


def check_range(coords, rows, lowest, highest, low, high):
    """Emit: raise for the first row of `coords` outside [low, high], if the extremes say that there is one."""

    @inline
    def check_column(column, low, high):
        if T.And(rows > 0, T.Or(lowest[column] < low, highest[column] > high)):
            for row in range(rows):
                if T.Or(coords[row, column] < low, coords[row, column] > high):
                    T.evaluate(
                        T.call_packed(
                            RAISE_RANGE,
                            row,
                            T.int32(column),
                            coords[row, column],
                            T.int32(low),
                            T.int32(high),
                        )
                    )

    for column in range(4):
        check_column(column, low[column], high[column])


@inline
def extremes(coords, rows, lowest, highest):
    """lowest, highest [4]: over all rows of coords [rows, 4]; of no rows, 0 and -1."""
    for c in T.vectorized(4):
        lowest[c] = T.if_then_else(rows > 0, T.int32(2147483647), T.int32(0))
    for c in T.vectorized(4):
        highest[c] = T.if_then_else(rows > 0, T.int32(-2147483648), T.int32(-1))
    for row in range(rows):
        for c in T.vectorized(4):
            lowest[c] = T.min(lowest[c], coords[row, c])
        for c in T.vectorized(4):
            highest[c] = T.max(highest[c], coords[row, c])


@inline
def choose(method, rows, plan, size):
    """Fill plan[PLAN_METHOD] and size [2] (slots, keys) from the box in `plan`; `method` is a Python string."""
    cells = T.alloc_buffer((1,), "int64")
    fits = T.alloc_buffer((1,), "int64")
    cells[0] = T.int64(1)
    fits[0] = T.int64(1)
    for axis in T.unroll(4):
        if cells[0] * plan[PLAN_EXTENT + axis] > T.int64(GRID_CELLS_MOST):
            fits[0] = T.int64(0)  # stop multiplying: the product may pass 2^63
        if fits[0] == 1:
            cells[0] = cells[0] * plan[PLAN_EXTENT + axis]
    if T.bool(method == "auto"):
        if cells[0] > rows * GRID_CELLS_PER_ROW + GRID_CELLS_FREE:
            fits[0] = T.int64(0)
    if T.bool(method == "hash"):
        fits[0] = T.int64(0)
    if fits[0] == 1:
        plan[PLAN_METHOD] = T.int64(GRID)
        size[0] = T.max(cells[0], T.int64(1))
        size[1] = T.int64(1)
    else:
        plan[PLAN_METHOD] = T.int64(HASH)
        size[1] = rows * 2 + 1  # at most half of the buckets are taken, even if no two voxels share one
        size[0] = size[1] * BUCKET


@cache
def plan_index(
    pad: tuple[int, int, int] = (0, 0, 0), method: str = "auto", low=DEFAULT_LOW, high=DEFAULT_HIGH
) -> tvm.tirx.PrimFunc:
    """PrimFunc (coords int32 [N, 4], plan int64 [PLAN_SIZE], size int64 [2]): checks the range and chooses the method.

    `pad`: empty cells around the box along x, y, z, as far as unchecked probes will reach. `low`, `high`: the range of
    batch, x, y, z. The kernel raises ValueError for the first row outside of it, and for `method="grid"` when the box has
    more than 2^30 cells it falls back to the hash.
    """

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
        choose(method, rows, plan, size)

    return kernel


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
def build_index() -> tvm.tirx.PrimFunc:
    """PrimFunc (coords int32 [N, 4], plan, slots, keys): fills the index; ValueError for the first duplicate row."""

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, slots_: T.handle, keys_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "build_index"})
        rows, num_slots, num_keys = T.int64(), T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = match_buffer(plan_, (PLAN_SIZE,), "int64")
        slots = match_buffer(slots_, (num_slots,), "int32")
        keys = match_buffer(keys_, (num_keys,), "int64")
        fill(slots, num_slots, T.int32(-1))
        if plan[PLAN_METHOD] == GRID:
            clashes = T.alloc_buffer(((rows + ROW_CHUNK - 1) // ROW_CHUNK,), "int32")
            for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):
                for i in range(T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK)):
                    row: T.let = chunk * ROW_CHUNK + i
                    cell: T.let = cell_of(plan, coords[row, 0], coords[row, 1], coords[row, 2], coords[row, 3])
                    slots[cell] = T.Cast("int32", row)
            for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):  # where two rows met, one no longer finds itself
                clashes[chunk] = T.int32(0)
                for i in range(T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK)):
                    row: T.let = chunk * ROW_CHUNK + i
                    cell: T.let = cell_of(plan, coords[row, 0], coords[row, 1], coords[row, 2], coords[row, 3])
                    if slots[cell] != T.Cast("int32", row):
                        clashes[chunk] = T.int32(1)
            for chunk in range((rows + ROW_CHUNK - 1) // ROW_CHUNK):
                if clashes[chunk] != 0:
                    report_duplicate(coords, rows, plan, slots)
        else:
            found = T.alloc_buffer((1,), "int32")
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
def lookup() -> tvm.tirx.PrimFunc:
    """PrimFunc (queries int32 [M, 4], plan, slots, keys, rows int32 [M]): the row of each query, or -1."""

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
