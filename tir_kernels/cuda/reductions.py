"""Sums and maxima over a row by the lanes of a warp, or over a part of memory by the threads of a block, in a fixed order.

Lanes exchange what they have in pairs, so that all end with the same bits; of several warps, results are combined in order.
"""

from collections.abc import Callable

from tvm.script import tirx as T

from ..script import inline
from .gpu import WARP
from .launch import THREADS
from .warp import from_other

WARPS = THREADS // WARP  # of a block that shares a row


def add(a, b):
    """The sum, for `combine`."""
    return a + b


@inline
def over_lanes(cell, place, combine, lanes=WARP):
    """cell[place] = those of all `lanes` neighbouring lanes combined, a power of two, in every one of them."""
    other = T.alloc_local((1,), "float32")  # a combination may evaluate its arguments twice, or one in a branch
    for step in T.unroll(lanes.bit_length() - 1):
        other[0] = from_other(cell[place], T.shift_right(lanes // 2, step))
        cell[place] = combine(cell[place], other[0])


def over_block(cell, place: int, combine: Callable, shared, thread) -> None:
    """Emit: cell[place] = those of all THREADS threads combined, in every one of them. `shared` [WARPS] is overwritten."""
    over_lanes(cell, place, combine)
    T.evaluate(T.tvm_storage_sync("shared"))
    with T.If(thread % WARP == 0), T.Then():
        T.buffer_store(shared, cell[place], [thread // WARP])
    T.evaluate(T.tvm_storage_sync("shared"))
    T.buffer_store(cell, shared[0], [place])
    for warp in range(1, WARPS):
        T.buffer_store(cell, combine(cell[place], shared[warp]), [place])


def each_of_lane(count: int, lane, body: Callable, kept: bool = True) -> None:
    """Emit: body(step, i) for each i of 0 .. count - 1 that `lane` of a warp takes: lane, lane + 32, ...; step = i // 32.

    `kept`: the loop is unrolled, so that what is indexed by `step` stays in registers.
    """
    if count >= WARP:
        with (T.unroll if kept else T.serial)(0, count // WARP) as step:
            body(step, lane + step * WARP)
    if count % WARP:
        with T.If(lane < count % WARP), T.Then():
            body(count // WARP, lane + count // WARP * WARP)
