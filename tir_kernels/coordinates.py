"""What an index of coordinates is made of on any target: keys of a hash, cells of a grid, and the choice between them.

The key of a coordinate has 63 bits: 12 of batch, then 17 for each of x, y, z, biased by 2^16. Batch indices run from 0 to
4095 and coordinates from -32768 to 32767, which leaves room for taps that reach up to 32768 beyond: a neighbour's key is
formed without a check and never wraps into another axis. Four voxels that follow each other along z share a bucket, found
by its key without the last two bits, so that the taps of one (x, y) column meet one or two buckets.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from .bounds import LinearBound
from .buffers import match_buffer, named
from .guards import RAISE_GRID
from .script import inline
from .spec.coordinate_index import (
    GRID,
    HASH,
    PLAN_EXTENT,
    PLAN_MARGIN,
    PLAN_METHOD,
    PLAN_ORIGIN,
    PLAN_PAD,
    PLAN_ROWS,
    PLAN_SIZE,
)

# A grid takes 4 bytes a cell, and the time to clear them; a hash 48 bytes a row, and some slow probes. Index and map of a 3^3
# convolution, 2,000 to 130,000 voxels, measured on one and two threads of an Ice Lake server: the grid is 2.6 to 14 times as
# fast at 8 to 32 cells a voxel, 1.6 to 3.3 times at 64, 1.1 to 2.7 times at 128, and mostly slower at 256. It ends at 64, where
# it takes 256 bytes a voxel, about what the pairs of such a map take (216): twice the memory would gain little or nothing.
GRID_CELLS_PER_ROW = 64
GRID_CELLS_FREE = 1 << 16  # always granted: 256 KiB, cleared in some ten microseconds
GRID_CELLS_MOST = 1 << 28  # of any grid, also where one is asked for: 1 GiB

KEY_BITS = 17
KEY_BIAS = 1 << 16
BUCKET_BITS = 2  # of z: four neighbours along z share a bucket
BUCKET = 1 << BUCKET_BITS
HASH_FACTOR = 0x27BB2EE687B0B0FD  # odd, about 2^62 / golden ratio (Knuth, TAOCP 6.4); TIR constants end at 2^63


def coordinate(coords, row):
    """(batch, x, y, z) of a row of coords [N, 4], as TIR expressions."""
    return tuple(coords[row, axis] for axis in range(4))


def key_of(coordinate):
    """The 63-bit key of a coordinate, from TIR expressions of any integer type."""
    batch, *rest = coordinate
    key = T.Cast("int64", batch)
    for value in rest:
        key = (key << KEY_BITS) | (T.Cast("int64", value) + KEY_BIAS)
    return key


def home_bucket(bucket_key, buckets):
    """The bucket where the search for `bucket_key` starts, of `buckets` in all."""
    hashed = (T.Cast("uint64", bucket_key) * T.uint64(HASH_FACTOR)) >> T.uint64(32)
    return T.Cast("int64", (hashed * T.Cast("uint64", buckets)) >> T.uint64(32))


@dataclass(frozen=True, eq=False)
class Plan:
    """Method and bounding box of an index. `entries`: the buffer int64 [PLAN_SIZE]."""

    entries: object

    @property
    def method(self):
        return self.entries[PLAN_METHOD]

    @property
    def rows(self):
        return self.entries[PLAN_ROWS]

    def origin(self, axis: int):
        """The lowest batch, x, y or z."""
        return self.entries[PLAN_ORIGIN + axis]

    def extent(self, axis: int):
        """Cells along an axis, with the empty ones behind the box."""
        return self.entries[PLAN_EXTENT + axis]

    def pad(self, axis: int):
        """Empty cells between two lines along x, y or z: axis 0, 1 or 2."""
        return self.entries[PLAN_PAD + axis]

    @property
    def margin(self):
        """Empty cells before the first."""
        return self.entries[PLAN_MARGIN]

    def cell_of(self, coordinate, dtype: str = "int64"):
        """The cell of a coordinate of the box, or as far outside as cells are empty. Those of a grid are numbers of int32."""
        batch, *rest = coordinate
        cell = T.Cast(dtype, T.Cast("int64", batch) - self.origin(0))
        for axis, value in enumerate(rest, start=1):
            cell = cell * T.Cast(dtype, self.extent(axis)) + T.Cast(dtype, T.Cast("int64", value) - self.origin(axis))
        return cell + T.Cast(dtype, self.margin)

    def contains_along(self, axis: int, value):
        """Whether a batch index, x, y or z lies in the box or in the empty cells behind it: one unsigned comparison."""
        return T.Cast("uint64", T.Cast("int64", value) - self.origin(axis)) < T.Cast("uint64", self.extent(axis))

    def contains(self, coordinate):
        """Whether a coordinate does, a TIR expression."""
        inside = T.bool(True)
        for axis, value in enumerate(coordinate):
            inside = inside & self.contains_along(axis, value)
        return inside


def match_plan(plan):
    """The `Plan` in a kernel's parameter, for `T.meta_var`."""
    return Plan(named("plan", match_buffer(plan, (PLAN_SIZE,), "int64")))


def grid_limit(rows, cells_per_row: int = GRID_CELLS_PER_ROW):
    """The most cells that "auto" gives the grid of `rows` rows, a TIR expression."""
    return T.min(rows * cells_per_row + GRID_CELLS_FREE, T.int64(GRID_CELLS_MOST))


def grid_bound(
    method: str, entries_per_row: int = 1, cells_per_row: int = GRID_CELLS_PER_ROW, *, spare: int = 0
) -> LinearBound:
    """The most slots of a grid, with `spare`. `entries_per_row`: what is inserted for each row of the coordinates."""
    if method == "grid":
        return LinearBound(0, GRID_CELLS_MOST + spare)
    return LinearBound(entries_per_row * cells_per_row, GRID_CELLS_FREE + spare, GRID_CELLS_MOST + spare)


def index_bounds(
    method: str, entries_per_row: int = 1, cells_per_row: int = GRID_CELLS_PER_ROW, *, spare: int = 0
) -> list[list[LinearBound]]:
    """The most slots and keys of an index, whatever the coordinates; see `choose`."""
    grid, one = grid_bound(method, entries_per_row, cells_per_row, spare=spare), LinearBound(0, 1)
    slots, keys = LinearBound(2 * BUCKET * entries_per_row, BUCKET), LinearBound(2 * entries_per_row, 1)
    return {"auto": [[grid, slots], [keys]], "grid": [[grid], [one]], "hash": [[slots], [keys]]}[method]


@inline
def count_cells(plan, cells, limit):
    """cells[0] = cells of the box in `plan`, or -1 where there are more than `limit`."""
    cells[0] = T.int64(1)
    for axis in T.unroll(4):
        if cells[0] >= 0:
            cells[0] = cells[0] * plan.extent(axis)
        if cells[0] > T.int64(GRID_CELLS_MOST):
            cells[0] = T.int64(-1)  # stop multiplying: the product may pass 2^63
    if cells[0] >= 0:
        cells[0] = cells[0] + plan.margin
    if cells[0] > limit:
        cells[0] = T.int64(-1)


@inline
def check_grid(method, plan, cells, refuse):
    """Refuse where a grid is asked for and the box is too large; `method` is a Python string."""
    if T.bool(method == "grid"):
        if cells[0] < 0:
            refuse(RAISE_GRID, plan.extent(0), plan.extent(1), plan.extent(2), plan.extent(3), T.int64(GRID_CELLS_MOST))


def choose(method: str, rows, cells_per_row: int, plan: Plan, size, cells, refuse: Callable, spare: int = 0) -> None:
    """Emit: plan[PLAN_METHOD] and size [2] (slots, keys), from the box in `plan`.

    `cells`: scratch, int64 [1]. refuse(refusal, *arguments) emits what raises or reports. `spare`: slots behind a grid's cells.
    """

    @inline
    def emit(plan, size, cells):
        count_cells(plan, cells, grid_limit(rows, cells_per_row) if method == "auto" else T.int64(GRID_CELLS_MOST))
        check_grid(method, plan, cells, refuse)
        if T.And(T.bool(method != "hash"), cells[0] >= 0):
            plan.entries[PLAN_METHOD] = T.int64(GRID)
            size[0] = cells[0] + spare
            size[1] = T.int64(1)
        else:
            plan.entries[PLAN_METHOD] = T.int64(HASH)
            size[1] = rows * 2 + 1  # at most half of the buckets are taken, even if no two voxels share one
            size[0] = size[1] * BUCKET

    emit(plan, size, cells)
