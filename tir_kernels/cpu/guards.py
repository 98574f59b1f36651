"""Loops that look for what a kernel refuses, emitted at its start; the words are in `tir_kernels.guards`."""

from collections.abc import Callable

from tvm.script import tirx as T

from ..guards import (
    RAISE_BATCH_INDEX,
    RAISE_EDGE,
    RAISE_INDEX,
    RAISE_KERNEL_SIZE,
    RAISE_MAP,
    RAISE_OFFSETS,
    RAISE_OUTPUT_SIZE,
    RAISE_PARENT,
    RAISE_RANGE,
    RAISE_REPEATED_ROW,
    RAISE_ROW,
    RAISE_TAPS,
)
from ..integers import last_of_all
from ..script import inline
from ..spec.conv3d import reach
from ..spec.conv_transpose3d import out_size
from ..spec.geometry import Geometry


def refuse(refusal: str, *arguments) -> None:
    """Emit: raise what `refusal`, the name of a packed function, makes of the arguments."""
    T.evaluate(T.call_packed(refusal, *arguments))


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


def check_range(coords, rows, lowest, highest, low, high, argument: str = "coords"):
    """Emit: raise for the first row of `coords` outside [low, high], if the extremes say that there is one.

    `low`, `high`: four Python ints or int32 expressions each. `argument` names the coordinates in the message.
    """

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
                            low,
                            high,
                            argument,
                        )
                    )

    def int32(limit):
        return T.int32(limit) if isinstance(limit, int) else limit

    for column in range(4):
        check_column(column, int32(low[column]), int32(high[column]))


@inline
def check_inside(coords, rows, batch, shape):
    """Raise for the first row of `coords` outside of the grid; `batch` and `shape` are int64 expressions."""
    lowest = T.alloc_buffer((4,), "int32")
    highest = T.alloc_buffer((4,), "int32")
    extremes(coords, rows, lowest, highest)
    check_range(coords, rows, lowest, highest, (0, 0, 0, 0), last_of_all((batch, *shape)))


@inline
def check_map(map_rows, rows_in, rows_out, map_taps, taps):
    """Raise unless a map leads from `rows_in` to `rows_out` rows by `taps` taps."""
    if T.Or(map_rows[0] != rows_in, map_rows[1] != rows_out):
        T.evaluate(T.call_packed(RAISE_MAP, map_rows[0], map_rows[1], rows_in, rows_out))
    if map_taps != taps:
        T.evaluate(T.call_packed(RAISE_TAPS, map_taps, taps))


def check_offsets(argument: str, offsets, batch, rows):
    """Emit: raise unless offsets [batch + 1] ascend from 0 to `rows`; `argument` names them in the message."""

    @inline
    def check(offsets, batch, rows):
        if T.Or(offsets[0] != 0, T.Cast("int64", offsets[batch]) != rows):
            T.evaluate(T.call_packed(RAISE_OFFSETS, argument, T.int64(0), offsets[0], offsets[batch], rows))
        for b in range(batch):
            if offsets[b + 1] < offsets[b]:
                T.evaluate(T.call_packed(RAISE_OFFSETS, argument, b + 1, offsets[b], offsets[b + 1], rows))

    check(offsets, batch, rows)


def check_entries(values, count, least: int, rows, refuse: Callable):
    """Emit: raise for the first of the `count` entries of `values` that is not in least .. rows - 1.

    `refuse(place, entry)` is the call that raises. Extremes are found first, which vectorizes, then the entry if there is one.
    """

    @inline
    def check(values, count, rows):
        lowest = T.alloc_buffer((1,), "int32")
        highest = T.alloc_buffer((1,), "int32")
        lowest[0] = T.int32(0)
        highest[0] = T.int32(-1)
        for i in range(count):
            lowest[0] = T.min(lowest[0], values[i])
            highest[0] = T.max(highest[0], values[i])
        if T.Or(lowest[0] < least, T.Cast("int64", highest[0]) >= rows):
            for i in range(count):
                if T.Or(values[i] < least, T.Cast("int64", values[i]) >= rows):
                    T.evaluate(refuse(i, values[i]))

    check(values, count, rows)


def check_index(index, count, rows):
    """Emit: raise for the first of the `count` entries of `index` that is neither a row, from 0 to rows - 1, nor -1."""
    check_entries(index, count, -1, rows, lambda i, entry: T.call_packed(RAISE_INDEX, i, entry, rows))


def check_batch_index(batch_index, count, batch):
    """Emit: raise for the first of the `count` entries of `batch_index` outside of 0 to batch - 1."""
    check_entries(batch_index, count, 0, batch, lambda i, entry: T.call_packed(RAISE_BATCH_INDEX, i, entry, batch))


def check_rows(argument: str, order, count, rows):
    """Emit: raise for the first of the `count` entries of `order` that is not in 0 .. rows - 1."""
    check_entries(order, count, 0, rows, lambda i, entry: T.call_packed(RAISE_ROW, argument, i, entry, rows))


@inline
def check_parent(parent, count, rows):
    """Raise for the first of the `count` entries of `parent` that is neither a row, from 0 to rows - 1, nor -1."""
    for i in range(count):
        if T.Or(parent[i] < -1, T.Cast("int64", parent[i]) >= rows):
            T.evaluate(T.call_packed(RAISE_PARENT, i, parent[i], rows))


def check_repeats(argument: str, order, rows):
    """Emit: raise for the first of the `rows` entries of `order`, all in 0 .. rows - 1, that repeats an earlier one."""

    @inline
    def check(order, rows):
        seen = T.alloc_buffer((rows,), "bool")
        for i in range(rows):
            seen[i] = False
        for i in range(rows):
            if seen[T.Cast("int64", order[i])]:
                T.evaluate(T.call_packed(RAISE_REPEATED_ROW, argument, i, order[i]))
            seen[T.Cast("int64", order[i])] = True

    check(order, rows)


def check_size(size, geometry: Geometry):
    """Emit: raise for the first axis along which the kernel is larger than the padded input, whose size is given."""
    for axis, (given, covered) in enumerate(zip(size, reach(geometry), strict=True)):
        with T.If(given < covered), T.Then():
            T.evaluate(T.call_packed(RAISE_KERNEL_SIZE, axis + 2, given, covered))


def check_edges(size, axes: tuple[int, ...]):
    """Emit: raise for the first of the axes, 2 for the first one in `size`, whose edge is replicated and which has none."""
    for axis in axes:
        with T.If(size[axis - 2] < 1), T.Then():
            T.evaluate(T.call_packed(RAISE_EDGE, axis))


def check_outputs(size, geometry: Geometry):
    """Emit: raise for the first axis along which a transposed convolution has no voxel, or no output."""
    for axis, (given, outputs) in enumerate(zip(size, out_size(size, geometry), strict=True)):
        with T.If(T.Or(given < 1, outputs < 1)), T.Then():
            T.evaluate(T.call_packed(RAISE_OUTPUT_SIZE, axis + 2, given, T.if_then_else(given < 1, T.int64(0), outputs)))
