"""Segments of rows, cut into tiles by the device: offsets are there, and how many tiles there are the host never knows.

A launch of one block checks the offsets, counts the tiles and lists them. What is launched for the tiles has as many blocks as
there can be, and those beyond their number have nothing to do.
"""

from collections.abc import Callable, Sequence

from tvm.script import tirx as T

from ..guards import STATUS_CODE, STATUS_FIRST
from ..script import inline
from .atomics import atomic_min
from .gpu import WARP
from .guards import is_wrong_offset, report_first, report_offset
from .warp import add_lower_lanes

PLANNERS = 512  # threads of the block
WARPS = PLANNERS // WARP


@inline
def add_before(counts, thread):
    """counts[0] of every thread becomes the sum of it over the threads before, counts[1] that over all threads."""
    totals = T.alloc_shared((WARPS,), "int32")
    own = T.alloc_local((1,), "int32")
    own[0] = counts[0]
    add_lower_lanes(counts, 0, thread % WARP)
    if thread % WARP == WARP - 1:
        totals[thread // WARP] = counts[0]
    T.tvm_storage_sync("shared")
    counts[0] -= own[0]
    counts[1] = 0
    for warp in range(WARPS):
        if warp == thread // WARP:
            counts[0] += counts[1]
        counts[1] += totals[warp]


def check_offsets(status, argument: str, offsets, segments, rows, thread) -> None:
    """Emit, for a block of PLANNERS threads: report offsets [segments + 1] that do not ascend from 0 to `rows`."""

    @inline
    def check(status, offsets, segments, rows, thread):
        for turn in range(segments // PLANNERS + 1):
            entry: T.let = turn * PLANNERS + thread
            if entry <= segments:
                if is_wrong_offset(offsets, entry, segments, rows):
                    T.evaluate(atomic_min(status, STATUS_FIRST, T.Cast("int64", entry)))
        T.tvm_storage_sync("shared")
        if thread == 0:
            report_first(status, lambda entry: report_offset(status, argument, offsets, entry, segments, rows))
        T.tvm_storage_sync("shared")

    check(status, offsets, segments, rows, thread)


def cut_segments(
    status,
    checked: Sequence[tuple],
    segments,
    tiles_of: Callable,
    first_tile,
    list_tile: Callable,
    refuse_before: Callable[[], None] = lambda: None,
) -> None:
    """Emit a launch that refuses wrong offsets, counts the tiles of all segments and lists them.

    `checked`: name, buffer int32 [segments + 1] and rows of each offsets; `segments` an int32 expression. `tiles_of(b)`: tiles
    of segment b, int32. `first_tile` int32 [segments + 1] gets the tiles before each segment and, at its end, their number: 0
    when something was refused, here or before. `list_tile(tile, b, i)` is a macro for the i-th tile of segment b, all int32.
    `refuse_before()` emits what one thread refuses before the offsets.
    """

    def check_all(thread):
        for argument, offsets, rows in checked:
            check_offsets(status, argument, offsets, segments, rows, thread)

    @inline
    def cut(status, first_tile, segments):
        with T.launch_thread("blockIdx.x", 1):
            thread = T.launch_thread("threadIdx.x", PLANNERS)
            counts = T.alloc_local((2,), "int32")
            bounds = T.alloc_local((2,), "int32")
            if thread == 0:
                refuse_before()
            check_all(thread)
            each: T.let = (segments + PLANNERS - 1) // PLANNERS  # segments of a thread, neighbours
            counts[0] = 0
            if status[STATUS_CODE] == 0:
                for i in range(each):
                    if thread * each + i < segments:
                        counts[0] += tiles_of(thread * each + i)
            add_before(counts, thread)
            for i in range(each):
                if thread * each + i < segments:
                    first_tile[thread * each + i] = counts[0]
                    if status[STATUS_CODE] == 0:
                        counts[0] += tiles_of(thread * each + i)
            if thread == 0:
                first_tile[segments] = counts[1]
            T.tvm_storage_sync("shared")
            for turn in range((counts[1] + PLANNERS - 1) // PLANNERS):
                tile: T.let = turn * PLANNERS + thread
                if tile < counts[1]:
                    bounds[0] = 0
                    bounds[1] = segments - 1
                    while bounds[0] < bounds[1]:  # the last segment that begins at this tile or before
                        middle: T.let = (bounds[0] + bounds[1] + 1) // 2
                        if first_tile[middle] <= tile:
                            bounds[0] = middle
                        else:
                            bounds[1] = middle - 1
                    list_tile(tile, bounds[0], tile - first_tile[bounds[0]])

    cut(status, first_tile, segments)
