"""Sums and maxima over one row in a fixed order, for the kernels that normalise."""

from collections.abc import Callable

from tvm.script import tirx as T

from ..script import inline

WIDTH = 32  # partial results of a row: enough vectors in flight for any instruction set, whose width changes no bit


def each_channel(channels: int, lanes: int, body: Callable):
    """Emit: body(c), a macro, for each of the `channels` c, in vectors said here.

    LLVM unrolls a short loop whole, and of a longer one makes vectors only behind a check that what it reads and what it writes
    do not overlap.
    """

    @inline
    def vectors():
        for v in range(channels // lanes):
            for lane in T.vectorized(lanes):
                body(v * lanes + lane)
        for c in range(channels % lanes):
            body(channels // lanes * lanes + c)

    vectors()


def reduce_row(total, count, value: Callable, combine: Callable, start):
    """Emit: total[0] = all value(i) of the `count` i combined, as 32 interleaved partial results that are then paired up.

    `value` is a Python function from a TIR index to a float32 expression, `combine` one of two such expressions.
    """

    @inline
    def fold(partial, half):
        """The lower half of `partial`, combined with its upper half."""
        for lane in T.vectorized(half):
            partial[lane] = combine(partial[lane], partial[half + lane])

    @inline
    def reduce(total):
        partial = T.alloc_buffer((WIDTH,), "float32")
        for lane in T.vectorized(WIDTH):
            partial[lane] = start
        for step in range(count // WIDTH):
            for lane in T.vectorized(WIDTH):
                partial[lane] = combine(partial[lane], value(step * WIDTH + lane))
        for lane in range(count % WIDTH):
            partial[lane] = combine(partial[lane], value(count // WIDTH * WIDTH + lane))
        fold(partial, 16)
        fold(partial, 8)
        fold(partial, 4)
        fold(partial, 2)
        total[0] = combine(partial[0], partial[1])

    reduce(total)


def row_sum(total, count, value: Callable):
    """Emit: total[0] = sum of value(i) over the `count` i, see `reduce_row`."""
    reduce_row(total, count, value, lambda a, b: a + b, T.float32(0))


def row_max(total, count, value: Callable):
    """Emit: total[0] = largest value(i) of the `count` i, minus infinity if there are none; NaN may be passed over."""
    reduce_row(total, count, value, lambda a, b: T.max(a, b), T.float32("-inf"))
