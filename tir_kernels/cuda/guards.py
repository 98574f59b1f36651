"""How kernels on a device report what they refuse: a code and arguments in the status buffer, int64 [STATUS_SIZE].

    [0]   the code of a refusal (`guards.REFUSALS`), or 0
    [1]   the first place of an error, or NOWHERE
    [2:]  arguments of the words

The first kernel that refuses something wins, and of its errors the first, whatever the order of threads. Once something is
refused nothing more is looked for, so what finds errors may trust what was checked before. All else that runs afterwards must
stay within memory whatever it reads: an index that was refused is taken as none.
"""

from collections.abc import Callable, Sequence

import tvm
from tvm.script import tirx as T

from ..buffers import match_buffer, named
from ..guards import (
    ARGUMENTS,
    NOWHERE,
    RAISE_BATCH_INDEX,
    RAISE_INDEX,
    RAISE_MAP,
    RAISE_OFFSETS,
    RAISE_RANGE,
    RAISE_ROW,
    RAISE_TAPS,
    REFUSALS,
    REPORTS,
    STATUS_ARGUMENTS,
    STATUS_CODE,
    STATUS_FIRST,
    STATUS_SIZE,
)
from ..integers import last_of_all
from ..script import inline
from .atomics import atomic_min
from .launch import for_each

CODES = {refusal.function: code for code, refusal in REFUSALS.items()}


def match_status(handle):
    """The status buffer in a kernel's parameter, for `T.meta_var`."""
    return named("status", match_buffer(handle, (STATUS_SIZE,), "int64"))


def reporting(kernel: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """`kernel`, which takes the status buffer behind its inputs."""
    return kernel.with_attr(REPORTS, 1)


def _number(argument):
    """An argument of a refusal's words as an int64: a name by its place in `ARGUMENTS`, a float by the bits of float64."""
    if isinstance(argument, str):
        return T.int64(ARGUMENTS.index(argument))
    if isinstance(argument, int):
        return T.int64(argument)
    if "float" in str(argument.ty.dtype):
        return T.reinterpret("int64", T.Cast("float64", argument))
    return T.Cast("int64", argument)


def report(status, refusal: str, *arguments) -> None:
    """Emit, for one thread of a kernel: write a refusal unless an earlier kernel wrote one."""
    with T.If(status[STATUS_CODE] == 0), T.Then():
        for place, argument in enumerate(arguments):
            T.buffer_store(status, _number(argument), [STATUS_ARGUMENTS + place])
        T.buffer_store(status, T.int64(CODES[refusal]), [STATUS_CODE])


def find_first(status, count, violates: Callable, found: Callable) -> None:
    """Emit launches: `found(place)`, by one thread, for the first of `count` places for which `violates(place)` holds.

    `count` is an int64 expression. What `found` emits calls `report`; both are evaluated on the device.
    """

    @inline
    def note(status, place):
        if status[STATUS_CODE] == 0:
            if violates(place):
                T.evaluate(atomic_min(status, STATUS_FIRST, place))

    @inline
    def report_it(status):
        with T.launch_thread("blockIdx.x", 1):
            T.launch_thread("threadIdx.x", 1)
            report_first(status, found)

    for_each(count, lambda place: note(status, place))
    report_it(status)


def report_first(status, found: Callable) -> None:
    """Emit, for one thread of a kernel: `found(place)` if it noted a place of an error, and nothing was refused before."""

    @inline
    def emit(status):
        if T.And(status[STATUS_CODE] == 0, status[STATUS_FIRST] != T.int64(NOWHERE)):
            found(status[STATUS_FIRST])

    emit(status)


def refuse_first(status, count, violates: Callable, refusal: str, arguments: Callable[..., Sequence]) -> None:
    """Emit: report the first of `count` places for which `violates(place)` holds, see `find_first`.

    `arguments(place)`: those of the refusal's words.
    """
    find_first(status, count, violates, lambda first: report(status, refusal, *arguments(first)))


def check_range(status, coords, rows, low: Sequence, high: Sequence, argument: str = "coords") -> None:
    """Emit: report the first row of `coords` [rows, 4] outside of [low, high], of the first column that has one.

    `low`, `high`: four Python ints or int32 expressions each. `argument` names the coordinates in the message.
    """

    def violates(place):
        row, column = place % rows, T.Cast("int32", place // rows)
        return T.Or(coords[row, column] < of_column(low, column), coords[row, column] > of_column(high, column))

    refuse_first(status, rows * 4, violates, RAISE_RANGE, lambda at: range_arguments(coords, rows, at, low, high, argument))


def of_column(limits: Sequence, column):
    """The limit of a column that is known on the device only; `limits` as in `check_range`."""
    ints = [T.int32(bound) if isinstance(bound, int) else bound for bound in limits]
    pairs = T.Select(column < 2, T.Select(column == 0, ints[0], ints[1]), T.Select(column == 2, ints[2], ints[3]))
    return pairs if len({str(bound) for bound in ints}) > 1 else ints[0]


def range_arguments(coords, rows, place, low: Sequence, high: Sequence, argument: str) -> tuple:
    """Those of the words for the row of `coords` at a place, column * rows + row."""
    row, column = place % rows, T.Cast("int32", place // rows)
    return row, column, coords[row, column], of_column(low, column), of_column(high, column), argument


def check_inside(status, coords, rows, batch, shape: Sequence) -> None:
    """Emit: report the first row of `coords` outside of the grid; `batch` and `shape` are int64 expressions."""
    check_range(status, coords, rows, (0, 0, 0, 0), last_of_all((batch, *shape)))


def check_entries(status, values, count, least: int, rows, refusal: str, arguments: Callable[..., Sequence]) -> None:
    """Emit launches that report the first of the `count` entries of `values` that is not in least .. rows - 1."""

    def violates(place):
        return T.Or(values[place] < least, T.Cast("int64", values[place]) >= rows)

    refuse_first(status, count, violates, refusal, arguments)


def check_index(status, index, count, rows) -> None:
    """Emit: report the first of the `count` entries of `index` that is neither a row, from 0 to rows - 1, nor -1."""
    check_entries(status, index, count, -1, rows, RAISE_INDEX, lambda i: (i, index[i], rows))


def check_batch_index(status, batch_index, count, batch) -> None:
    """Emit: report the first of the `count` entries of `batch_index` outside of 0 to batch - 1."""
    check_entries(status, batch_index, count, 0, batch, RAISE_BATCH_INDEX, lambda i: (i, batch_index[i], batch))


def batch_element(batch_index, row, batch):
    """The batch element of a row, an int64; of an index that was refused, the first, if there is any."""
    given = T.Cast("int64", batch_index[row])
    return T.if_then_else(T.And(given >= 0, given < batch), given, T.int64(0))


def check_rows(status, argument: str, order, count, rows) -> None:
    """Emit: report the first of the `count` entries of `order` that is not in 0 .. rows - 1."""
    check_entries(status, order, count, 0, rows, RAISE_ROW, lambda i: (argument, i, order[i], rows))


def check_offsets(status, argument: str, offsets, batch, rows) -> None:
    """Emit: report offsets [batch + 1] that do not ascend from 0 to `rows`; `argument` names them in the message."""
    find_first(
        status,
        batch + 1,
        lambda entry: is_wrong_offset(offsets, entry, batch, rows),
        lambda entry: report_offset(status, argument, offsets, entry, batch, rows),
    )


def is_wrong_offset(offsets, entry, batch, rows):
    """Whether an entry of offsets [batch + 1] is less than the one before.

    Entry 0, which has none before, stands for both ends: it is wrong where they are not 0 and `rows`.
    """
    wrong_ends = T.Or(offsets[0] != 0, T.Cast("int64", offsets[batch]) != rows)
    falls = offsets[entry] < offsets[T.max(entry, T.Cast(entry.ty.dtype, 1)) - 1]
    return T.Or(T.And(entry == 0, wrong_ends), T.And(entry > 0, falls))


def report_offset(status, argument: str, offsets, entry, batch, rows) -> None:
    """Emit, for one thread of a kernel: report an entry for which `is_wrong_offset` holds."""
    with T.If(entry == 0):
        with T.Then():
            report(status, RAISE_OFFSETS, argument, 0, offsets[0], offsets[batch], rows)
        with T.Else():
            report(status, RAISE_OFFSETS, argument, entry, offsets[entry - 1], offsets[entry], rows)


def check_map(status, map_rows, rows_in, rows_out, map_taps, taps) -> None:
    """Emit, for one thread of a kernel: report a map that does not lead from `rows_in` to `rows_out` rows by `taps` taps."""
    with T.If(T.Or(map_rows[0] != rows_in, map_rows[1] != rows_out)), T.Then():
        report(status, RAISE_MAP, map_rows[0], map_rows[1], rows_in, rows_out)
    with T.If(map_taps != taps), T.Then():
        report(status, RAISE_TAPS, map_taps, taps)
