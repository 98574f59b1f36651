"""Errors that only a running kernel can find: a kernel calls one of these packed functions, which raises `ValueError`.

They are registered when `tir_kernels` (or anything above it) is imported; a process that runs a compiled module without
importing it gets TVM's "function not found" with the same name instead of the text.
"""

import tvm

RAISE_RANGE = "tir_kernels.raise_range_error"
RAISE_DUPLICATE = "tir_kernels.raise_duplicate_error"
RAISE_ORDER = "tir_kernels.raise_order_error"
RAISE_INDEX = "tir_kernels.raise_index_error"
RAISE_BATCH_INDEX = "tir_kernels.raise_batch_index_error"
RAISE_OFFSETS = "tir_kernels.raise_offsets_error"
RAISE_MAP = "tir_kernels.raise_map_error"
RAISE_TAPS = "tir_kernels.raise_taps_error"
RAISE_SITES = "tir_kernels.raise_sites_error"
RAISE_PARENT = "tir_kernels.raise_parent_error"
RAISE_ROW = "tir_kernels.raise_row_error"
RAISE_REPEATED_ROW = "tir_kernels.raise_repeated_row_error"

RAISE_KERNEL_SIZE = "tir_kernels.raise_kernel_size_error"

COLUMNS = ("batch index", "x", "y", "z")


@tvm.register_global_func(RAISE_RANGE)
def raise_range_error(row: int, column: int, value: int, low: int, high: int):
    """A coordinate or batch index lies outside its range."""
    raise ValueError(f"coords: row {row} has {COLUMNS[column]} {value}, expected {low} to {high}")


@tvm.register_global_func(RAISE_DUPLICATE)
def raise_duplicate_error(row: int, earlier: int):
    """Two rows hold the same coordinates."""
    raise ValueError(f"coords: row {row} repeats the coordinates of row {earlier}, expected every row to be different")


@tvm.register_global_func(RAISE_ORDER)
def raise_order_error(row: int, value: int, previous: int):
    """Batch indices do not ascend, so the rows of one batch element are not contiguous."""
    raise ValueError(
        f"coords: row {row} has batch index {value} after {previous}, expected the rows of each batch element together, "
        "in ascending order"
    )


@tvm.register_global_func(RAISE_INDEX)
def raise_index_error(position: int, value: int, rows: int):
    """A row index points outside of the features it selects from."""
    expected = f"a row from 0 to {rows - 1}, or -1" if rows else "-1, as there are no rows"
    raise ValueError(f"index: entry {position} is {value}, expected {expected}")


@tvm.register_global_func(RAISE_PARENT)
def raise_parent_error(row: int, value: int, rows: int):
    """A fine site names a coarse row that there is not."""
    expected = f"a row from 0 to {rows - 1}, or -1" if rows else "-1, as there are no rows"
    raise ValueError(f"parent: row {row} is {value}, expected {expected}")


@tvm.register_global_func(RAISE_BATCH_INDEX)
def raise_batch_index_error(row: int, value: int, batch: int):
    """A row names a batch element that there is not."""
    raise ValueError(f"batch_index: row {row} is {value}, expected 0 to {batch - 1}")


@tvm.register_global_func(RAISE_OFFSETS)
def raise_offsets_error(argument: str, entry: int, previous: int, value: int, rows: int):
    """Offsets of batch elements do not ascend (`entry` > 0), or do not run from 0 to the number of rows."""
    if entry:
        raise ValueError(f"{argument}: entry {entry} is {value} after {previous}, expected ascending offsets")
    raise ValueError(f"{argument}: from {previous} to {value}, expected offsets from 0 to the {rows} rows")


@tvm.register_global_func(RAISE_ROW)
def raise_row_error(argument: str, position: int, value: int, rows: int):
    """An order of rows names one that there is not."""
    raise ValueError(f"{argument}: entry {position} is {value}, expected a row from 0 to {rows - 1}")


@tvm.register_global_func(RAISE_REPEATED_ROW)
def raise_repeated_row_error(argument: str, position: int, value: int):
    """An order that every row stands in once has one of them twice."""
    raise ValueError(f"{argument}: entry {position} is row {value} again, expected every row once")


@tvm.register_global_func(RAISE_SITES)
def raise_sites_error(column: int, first: int, last: int):
    """The output sites of a convolution leave the range of coordinates."""
    raise ValueError(f"coords: output sites reach from {first} to {last} along {COLUMNS[column]}, expected -32768 to 32767")


@tvm.register_global_func(RAISE_KERNEL_SIZE)
def raise_kernel_size_error(axis: int, size: int, reach: int):
    """A dense convolution's kernel is larger than the padded input."""
    raise ValueError(f"x: expected a padded size of at least the {reach} of the kernel along axis {axis}, given {size}")


@tvm.register_global_func(RAISE_MAP)
def raise_map_error(given_in: int, given_out: int, rows_in: int, rows_out: int):
    """A kernel map meets features of another coordinate set."""
    raise ValueError(
        f"kernel_map: expected a map from {rows_in} input rows to {rows_out} output rows, as the features have, "
        f"given one from {given_in} to {given_out}: it was built for other coordinates"
    )


@tvm.register_global_func(RAISE_TAPS)
def raise_taps_error(given: int, taps: int):
    """A kernel map meets a weight of another kernel size."""
    raise ValueError(f"kernel_map: expected a map of {taps} taps, as the weight has, given one of {given}")
