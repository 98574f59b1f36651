"""What only a running kernel can find and refuses: for each such error its words, its code and the function that raises it.

On a CPU a kernel calls the packed function of a refusal, which raises `ValueError`; `cpu.guards` has the loops that look for
errors. A device cannot call: its kernels write a code and the arguments into a status buffer, and the host, which reads it once
a call, or once for several calls in `reading_once`, raises the words.

The functions are registered when `tir_kernels` (or anything above it) is imported; a process that runs a compiled module
without importing it gets TVM's "function not found" with the same name instead of the text.
"""

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from math import isfinite

import tvm

RAISE_RANGE = "tir_kernels.raise_range_error"
RAISE_DUPLICATE = "tir_kernels.raise_duplicate_error"
RAISE_SET_DUPLICATE = "tir_kernels.raise_set_duplicate_error"
RAISE_ORDER = "tir_kernels.raise_order_error"
RAISE_INDEX = "tir_kernels.raise_index_error"
RAISE_BATCH_INDEX = "tir_kernels.raise_batch_index_error"
RAISE_OFFSETS = "tir_kernels.raise_offsets_error"
RAISE_MAP = "tir_kernels.raise_map_error"
RAISE_TAPS = "tir_kernels.raise_taps_error"
RAISE_GRID = "tir_kernels.raise_grid_error"
RAISE_SITES = "tir_kernels.raise_sites_error"
RAISE_PARENT = "tir_kernels.raise_parent_error"
RAISE_ROW = "tir_kernels.raise_row_error"
RAISE_REPEATED_ROW = "tir_kernels.raise_repeated_row_error"
RAISE_KERNEL_SIZE = "tir_kernels.raise_kernel_size_error"
RAISE_EDGE = "tir_kernels.raise_edge_error"
RAISE_OUTPUT_SIZE = "tir_kernels.raise_output_size_error"
RAISE_RESIZE = "tir_kernels.raise_resize_error"
RAISE_POINT = "tir_kernels.raise_point_error"
RAISE_GRID_NUMBER = "tir_kernels.raise_grid_number_error"
RAISE_TERM = "tir_kernels.raise_term_error"
RAISE_SIZE = "tir_kernels.raise_size_error"
RAISE_SITE_COUNT = "tir_kernels.raise_site_count_error"
RAISE_SITE_MEMORY = "tir_kernels.raise_site_memory_error"
RAISE_VOXELS = "tir_kernels.raise_voxels_error"

LARGEST = 32767  # of coordinates
GIB = 1 << 30
COLUMNS = ("batch index", "x", "y", "z")
# Arguments that share words; a number where no name fits.
ARGUMENTS = (
    "batch_offsets",
    "q_offsets",
    "k_offsets",
    "q_order",
    "k_order",
    "coords",
    "coords_in",
    "coords_out",
    "offsets",
    "voxel_size",
    "origin",
)


def range_words(row: int, column: int, value: int, low: int, high: int, argument: str | int = "coords") -> str:
    """A coordinate or batch index lies outside its range."""
    unbounded = column and value < low == 0 and high == LARGEST  # a grid whose extent is inferred
    hint = ", or any with shape=None, which bounds nothing" if unbounded else ""
    return f"{_argument(argument)}: row {row} has {COLUMNS[column]} {value}, expected {low} to {high}{hint}"


def duplicate_words(row: int, earlier: int, argument: str | int = "coords") -> str:
    """Two rows hold the same coordinates."""
    return f"{_argument(argument)}: row {row} repeats the coordinates of row {earlier}, expected every row to be different"


def set_duplicate_words(row: int, earlier: int, place: int) -> str:
    """Two rows of one set of several hold the same coordinates."""
    return (
        f"coords: row {row} of set {place} repeats the coordinates of row {earlier} of it, "
        "expected every row of a set to be different"
    )


def order_words(row: int, value: int, previous: int) -> str:
    """Batch indices do not ascend, so the rows of one batch element are not contiguous."""
    return (
        f"coords: row {row} has batch index {value} after {previous}, expected the rows of each batch element together, "
        "in ascending order"
    )


def index_words(position: int, value: int, rows: int) -> str:
    """A row index points outside of the features it selects from."""
    return f"index: entry {position} is {value}, expected {_row_or_none(rows)}"


def parent_words(row: int, value: int, rows: int) -> str:
    """A fine site names a coarse row that there is not."""
    return f"parent: row {row} is {value}, expected {_row_or_none(rows)}"


def _row_or_none(rows: int) -> str:
    return f"a row from 0 to {rows - 1}, or -1" if rows else "-1, as there are no rows"


def batch_index_words(row: int, value: int, batch: int) -> str:
    """A row names a batch element that there is not."""
    return f"batch_index: row {row} is {value}, expected 0 to {batch - 1}"


def offsets_words(argument: str | int, entry: int, previous: int, value: int, rows: int) -> str:
    """Offsets of batch elements do not ascend (`entry` > 0), or do not run from 0 to the number of rows."""
    if entry:
        return f"{_argument(argument)}: entry {entry} is {value} after {previous}, expected ascending offsets"
    return f"{_argument(argument)}: from {previous} to {value}, expected offsets from 0 to the {rows} rows"


def row_words(argument: str | int, position: int, value: int, rows: int) -> str:
    """An order of rows names one that there is not."""
    return f"{_argument(argument)}: entry {position} is {value}, expected a row from 0 to {rows - 1}"


def repeated_row_words(argument: str | int, position: int, value: int) -> str:
    """An order that every row stands in once has one of them twice."""
    return f"{_argument(argument)}: entry {position} is row {value} again, expected every row once"


def _argument(argument: str | int) -> str:
    return ARGUMENTS[argument] if isinstance(argument, int) else argument


def grid_words(batch: int, x: int, y: int, z: int, most: int) -> str:
    """A grid is asked for, and the box of the coordinates is too large for one."""
    return (
        f"method: given 'grid' for a box of {batch} x {x} x {y} x {z} cells (batch, x, y, z), expected at most {most} cells; "
        "'auto' takes any box"
    )


def sites_words(column: int, first: int, last: int) -> str:
    """The output sites of a convolution leave the range of coordinates."""
    return f"coords: output sites reach from {first} to {last} along {COLUMNS[column]}, expected -32768 to 32767"


def kernel_size_words(axis: int, size: int, reach: int) -> str:
    """A dense convolution's kernel is larger than the padded input."""
    return f"x: expected a padded size of at least the {reach} of the kernel along axis {axis}, given {size}"


def edge_words(axis: int) -> str:
    """A dense convolution pads an axis by replicating its edge, and there is none."""
    return f"x: expected a size of at least 1 along axis {axis}, whose edge is replicated, given 0"


def output_size_words(axis: int, size: int, size_out: int) -> str:
    """A transposed dense convolution has no output, or nothing to make it of."""
    return f"x: expected a size that gives at least 1 output along axis {axis}, given {size}, which gives {max(size_out, 0)}"


def resize_words(height: int, width: int, height_out: int, width_out: int) -> str:
    """Images without pixels are resized to some with."""
    return f"x: expected at least 1 row and 1 column to resize to {height_out} x {width_out}, given {height} x {width}"


def map_words(given_in: int, given_out: int, rows_in: int, rows_out: int) -> str:
    """A kernel map meets features of another coordinate set."""
    return (
        f"kernel_map: expected a map from {rows_in} input rows to {rows_out} output rows, as the features have, "
        f"given one from {given_in} to {given_out}: it was built for other coordinates"
    )


def taps_words(given: int, taps: int) -> str:
    """A kernel map meets a weight of another kernel size."""
    return f"kernel_map: expected a map of {taps} taps, as the weight has, given one of {given}"


def point_words(row: int, axis: int, value: float, position: float) -> str:
    """A point lies in no voxel that has coordinates."""
    place = f"points: row {row} has {COLUMNS[1 + axis]} {value:.9g}"
    if not isfinite(value):
        return f"{place}, expected a finite number"
    return f"{place}, which is {position:.9g} voxels from the origin, expected voxels -32768 to 32767"


def grid_number_words(argument: str | int, axis: int, value: float) -> str:
    """A voxel size or an origin is no number to divide by or to subtract."""
    kind = "a finite number above 0" if _argument(argument) == "voxel_size" else "a finite number"
    return f"{_argument(argument)}: expected {kind} along {COLUMNS[1 + axis]}, given {value:.9g}"


def term_words(row: int, term: int, value: int, rows: int) -> str:
    """One of the rows that a weighted sum takes is not there."""
    return f"index: entry {term} of row {row} is {value}, expected {_row_or_none(rows)}"


def size_words(argument: str | int, axis: int, given: int, expected: int, other: str | int) -> str:
    """An argument of a compiled function has another size than it declares, or than another argument, if that has a name."""
    along = "rows" if axis == 0 else f"along axis {axis}"
    return f"{_argument(argument)}: expected {expected} {along}{f', as {_argument(other)} has' * bool(other)}, given {given}"


def memory_words(what: str, dtype: str, dims: Sequence[int], size: int, left: int) -> str:
    """A tensor, and the scratch beside it, take more memory than is left; see `memory`."""
    return (
        f"{what}: expected what fits the {left / GIB:,.1f} GiB of memory that are left, "
        f"given {dtype} {list(dims)}, which takes {size / GIB:,.1f} GiB with its scratch"
    )


def site_count_words(sites: int) -> str:
    """A strided or transposed convolution may have more output sites than an int32 numbers."""
    return f"coords: input rows times taps give up to {sites} output sites, expected at most 2147483647"


def site_memory_words(sites: int, size: int, left: int) -> str:
    """What a device finds sites with takes more memory than it has left."""
    return memory_words("strided_map", "int32", [sites, 4], size, left)


def voxels_words(voxels: int, most: int) -> str:
    """A batch element of a dense convolution has more voxels than a device numbers."""
    return f"x: expected at most {most} voxels in a batch element, and as many in one of the result, given {voxels}"


@dataclass(frozen=True)
class Refusal:
    """`function`: the packed function that raises ValueError with what `words` makes of the arguments.

    `floats`: the places of the arguments that are no integers.
    """

    function: str
    words: Callable[..., str]
    floats: tuple[int, ...] = ()


# By code, which is what a device writes; a code that was given once keeps its meaning.
REFUSALS: dict[int, Refusal] = {
    1: Refusal(RAISE_RANGE, range_words),
    2: Refusal(RAISE_DUPLICATE, duplicate_words),
    3: Refusal(RAISE_ORDER, order_words),
    4: Refusal(RAISE_INDEX, index_words),
    5: Refusal(RAISE_BATCH_INDEX, batch_index_words),
    6: Refusal(RAISE_OFFSETS, offsets_words),
    7: Refusal(RAISE_MAP, map_words),
    8: Refusal(RAISE_TAPS, taps_words),
    9: Refusal(RAISE_SITES, sites_words),
    30: Refusal(RAISE_VOXELS, voxels_words),
    10: Refusal(RAISE_PARENT, parent_words),
    11: Refusal(RAISE_ROW, row_words),
    12: Refusal(RAISE_REPEATED_ROW, repeated_row_words),
    13: Refusal(RAISE_KERNEL_SIZE, kernel_size_words),
    14: Refusal(RAISE_GRID, grid_words),
    21: Refusal(RAISE_POINT, point_words, floats=(2, 3)),
    22: Refusal(RAISE_GRID_NUMBER, grid_number_words, floats=(2,)),
    23: Refusal(RAISE_TERM, term_words),
    15: Refusal(RAISE_SIZE, size_words),
    16: Refusal(RAISE_SITE_COUNT, site_count_words),
    24: Refusal(RAISE_SITE_MEMORY, site_memory_words),
    20: Refusal(RAISE_SET_DUPLICATE, set_duplicate_words),
    25: Refusal(RAISE_EDGE, edge_words),
    26: Refusal(RAISE_OUTPUT_SIZE, output_size_words),
    27: Refusal(RAISE_RESIZE, resize_words),
}


def refuse(code: int, *arguments) -> None:
    """Raise the ValueError of a code; an argument's name may be its place in `ARGUMENTS`."""
    raise ValueError(REFUSALS[code].words(*arguments))


for _code, _refusal in REFUSALS.items():
    tvm.register_global_func(_refusal.function, lambda *arguments, code=_code: refuse(code, *arguments))


# What a device writes, int64 [STATUS_SIZE]: a code or 0, where the first error of a kernel is, and the arguments of the words.
STATUS_CODE, STATUS_FIRST, STATUS_ARGUMENTS = 0, 1, 2
STATUS_SIZE = 10
NOWHERE = 2**63 - 1  # in STATUS_FIRST: no error
READ_STATUS = "tir_kernels.read_status"
REPORTS = "tir_kernels.reports"  # attribute of kernels that take a status buffer behind their inputs


class _Unread(threading.local):
    """The status buffers that this thread has not read yet; None where it reads each at once."""

    buffers: list[tvm.runtime.Tensor] | None = None


_unread = _Unread()


@contextmanager
def reading_once() -> Iterator[None]:
    """Inside, calls on a device do not wait until it is known what their kernels refuse: the first ValueError of all calls is
    raised at the end, which waits once. Until then what follows a refusal computes with what is there."""
    before, _unread.buffers = _unread.buffers, []
    buffers = _unread.buffers
    try:
        yield
    finally:  # what a call before has refused comes before what was raised since
        _unread.buffers = before
        for buffer in buffers:
            read_status(buffer)


def read_status(status: tvm.runtime.Tensor) -> None:
    """ValueError of what kernels wrote into a status buffer, if they refused something. Waits for them, unless in
    `reading_once`."""
    if _unread.buffers is not None:
        _unread.buffers.append(status)
        return
    code, _, *arguments = status.numpy().tolist()
    if code:
        refusal = REFUSALS[code]
        for place in refusal.floats:  # their bits, as float64
            arguments[place] = struct.unpack("d", struct.pack("q", arguments[place]))[0]
        refuse(code, *arguments[: len(signature(refusal.words).parameters)])


tvm.register_global_func(READ_STATUS, read_status)
