"""Sums that several blocks of threads share: each writes its part, and a second launch adds the parts in order.

Into how many parts a sum is cut is a function of sizes alone, so no bit depends on the device.
"""

from tvm.script import tirx as T

from .epilogue import Epilogue
from .launch import for_each, left_to_nvcc

BLOCKS = 256  # as many as are wanted: about two for each processor of a large device
MOST_PARTS = 16  # as blocks along y they could be more, but each costs a pass over the result
LEAST_STEPS = 4  # of a part: fewer would not pay for it


def parts_for(blocks, steps):
    """Into how many parts the sums of `blocks` blocks are cut, of `steps` steps each at most: int64 expressions."""
    wanted = T.min(BLOCKS // T.max(blocks, T.int64(1)), steps // LEAST_STEPS)
    return T.max(T.min(wanted, T.int64(MOST_PARTS)), T.int64(1))


def part_of(steps, part, parts):
    """(first, end) of the steps of one part: int32 expressions."""
    return steps * part // parts, steps * (part + 1) // parts


def allocate_parts(parts, rows, columns: int):
    """float32 [parts, rows, columns] in device memory; of a single part, which is written out at once, next to nothing."""
    kept = T.max(T.if_then_else(parts > 1, rows, T.int64(0)), T.int64(1))
    return T.alloc_buffer((parts, kept, columns), "float32")


def finish_part(sums, part, parts, epilogue: Epilogue, values, row, column, columns, fast) -> None:
    """Emit: the elements of a row from `column` on, as many as `values` has, go to their part, or are finished if it is all."""
    with T.If(parts > 1):
        with T.Then():
            with T.unroll(int(values.shape[0])) as e:
                with T.If(e < columns), T.Then():
                    T.buffer_store(sums, values[e], [part, row, column + e])
        with T.Else():
            epilogue.finish(values, row, column, columns, fast)


def add_parts(sums, parts, rows, columns: int, epilogue: Epilogue, written=True) -> None:
    """Emit a launch, where there are several parts, that adds them and finishes the result.

    `written`: whether the parts were written at all; if not, the result is left as it is.
    """

    def add(place):
        with left_to_nvcc(), T.If(written), T.Then():
            row, column = T.bind(place // columns), T.bind(T.Cast("int32", place % columns))
            values = add_in_order(sums, parts, [row, column])
            epilogue.finish(values, row, column, columns - column)

    with T.If(parts > 1), T.Then():
        for_each(rows * columns, add)


def add_in_order(sums, parts, at: list):
    """Emit the sum of all parts of an element, and return it: float32 [1], local. sums [parts, ...], `at` of the element."""
    value = T.alloc_buffer((1,), "float32", scope="local")
    T.buffer_store(value, sums[(0, *at)], [0])
    with T.serial(1, T.Cast("int32", parts)) as part:
        T.buffer_store(value, value[0] + sums[(part, *at)], [0])
    return value
