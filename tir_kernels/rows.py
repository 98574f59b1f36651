"""Sums over one row in a fixed order, for the kernels that normalise."""

from tvm.script import tirx as T

from .script import inline

WIDTH = 32  # partial sums of a row: enough vectors in flight for any instruction set, whose width changes no bit


@inline
def fold(partial, half):
    """The lower half of `partial` += its upper half."""
    for lane in T.vectorized(half):
        partial[lane] += partial[half + lane]


def row_sum(total, count: int, value):
    """Emit: total[0] = sum of value(i) over the `count` i, in 32 interleaved partial sums that are then added pairwise.

    `value` is a Python function from a TIR index to a float32 expression.
    """

    @inline
    def sum_up(total):
        partial = T.alloc_buffer((WIDTH,), "float32")
        for lane in T.vectorized(WIDTH):
            partial[lane] = T.float32(0)
        for step in range(count // WIDTH):
            for lane in T.vectorized(WIDTH):
                partial[lane] += value(step * WIDTH + lane)
        for lane in range(count % WIDTH):
            partial[lane] += value(count // WIDTH * WIDTH + lane)
        fold(partial, 16)
        fold(partial, 8)
        fold(partial, 4)
        fold(partial, 2)
        total[0] = partial[0] + partial[1]

    sum_up(total)
