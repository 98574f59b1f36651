"""The box of coordinates and whether they lie in their range, as launches of a kernel."""

from dataclasses import dataclass

from tvm.script import tirx as T

from ..buffers import named
from ..guards import RAISE_RANGE, STATUS_FIRST
from ..script import inline
from .atomics import atomic_max, atomic_min
from .gpu import WARP
from .guards import range_arguments, report, report_first
from .launch import THREADS, blocks_for
from .warp import largest_of_warp, least_of_warp

WARPS = THREADS // WARP
ROWS_EACH = 4  # of a thread


@dataclass(frozen=True, eq=False)
class Extremes:
    """The least and the largest of each column of coords [rows, 4], and their range; see `find_extremes`."""

    coords: object
    rows: object
    values: object  # int32 [8]: the least of each column, then the largest
    low: tuple
    high: tuple

    def lowest(self, column: int):
        """The least of a column, an int32 expression; of no rows 0."""
        return T.if_then_else(self.rows > 0, self.values[column], T.int32(0))

    def highest(self, column: int):
        """The largest of a column; of no rows -1."""
        return T.if_then_else(self.rows > 0, self.values[4 + column], T.int32(-1))

    def first_outside(self, row):
        """The first column in which a row lies outside of the range, an int32 expression; 4 if there is none."""
        column = T.int32(4)
        for other in reversed(range(4)):
            value = self.coords[row, other]
            column = T.Select(T.Or(value < self.low[other], value > self.high[other]), T.int32(other), column)
        return column

    def report(self, status, argument: str) -> None:
        """Emit, for one thread of a later launch: report the first row outside of the range, of the first such column.

        `argument` names the coordinates in the message.
        """

        def found(place):
            report(status, RAISE_RANGE, *range_arguments(self.coords, self.rows, place, self.low, self.high, argument))

        report_first(status, found)


def find_extremes(status, coords, rows, low, high) -> Extremes:
    """Emit launches that find the extremes of coords int32 [rows, 4], and note the first row outside of [low, high].

    `low`, `high`: four Python ints or int32 expressions each.
    """
    low, high = (tuple(T.int32(limit) if isinstance(limit, int) else limit for limit in limits) for limits in (low, high))
    found = Extremes(coords, rows, named("extremes", T.alloc_buffer((8,), "int32")), low, high)

    @inline
    def clear(values):
        with T.launch_thread("blockIdx.x", 1):
            column = T.launch_thread("threadIdx.x", 8)
            values[column] = T.if_then_else(column < 4, T.int32(2147483647), T.int32(-2147483648))

    @inline
    def look(status, coords, values, rows):
        with T.launch_thread("blockIdx.x", blocks_for(rows, THREADS * ROWS_EACH)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            least = T.alloc_local((4,), "int32")
            largest = T.alloc_local((4,), "int32")
            outside = T.alloc_local((1,), "int32")
            of_warps = T.alloc_shared((8, WARPS), "int32")
            for c in T.unroll(4):
                least[c] = T.int32(2147483647)
                largest[c] = T.int32(-2147483648)
            for i in range(ROWS_EACH):
                row: T.let = T.Cast("int64", block) * (THREADS * ROWS_EACH) + T.Cast("int64", i * THREADS + thread)
                if row < rows:
                    for c in T.unroll(4):
                        least[c] = T.min(least[c], coords[row, c])
                        largest[c] = T.max(largest[c], coords[row, c])
                    outside[0] = found.first_outside(row)
                    if outside[0] < 4:
                        T.evaluate(atomic_min(status, STATUS_FIRST, T.Cast("int64", outside[0]) * rows + row))
            for c in T.unroll(4):
                least[c] = least_of_warp(least[c])
                largest[c] = largest_of_warp(largest[c])
                if thread % WARP == 0:
                    of_warps[c, thread // WARP] = least[c]
                    of_warps[4 + c, thread // WARP] = largest[c]
            T.tvm_storage_sync("shared")
            if thread < 8:
                outside[0] = of_warps[thread, 0]
                for warp in range(1, WARPS):
                    outside[0] = T.Select(
                        thread < 4, T.min(outside[0], of_warps[thread, warp]), T.max(outside[0], of_warps[thread, warp])
                    )
                if thread < 4:
                    T.evaluate(atomic_min(values, thread, outside[0]))
                else:
                    T.evaluate(atomic_max(values, thread, outside[0]))

    clear(found.values)
    look(status, coords, found.values, rows)
    return found
