"""Where the rows of each batch element start: a search for each element, as batch indices ascend."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_ORDER, RAISE_RANGE
from ..script import inline
from ..spec.batch_offsets import BatchOffsets
from .gpu import Gpu, kernel_name
from .guards import find_first, match_status, report, reporting
from .sort import find_starts


def before(coords, row):
    """The batch index of the row before, 0 before the first."""
    return T.if_then_else(row > 0, coords[T.max(row, T.int64(1)) - 1, 0], T.int32(0))


@cache
def batch_offsets(spec: BatchOffsets, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `BatchOffsets`."""

    def is_outside(coords, row, batch):
        return T.Or(coords[row, 0] < 0, T.Cast("int64", coords[row, 0]) >= batch)

    def violates(coords, row, batch):
        changes = coords[row, 0] != before(coords, row)
        return T.And(changes, T.Or(is_outside(coords, row, batch), coords[row, 0] < before(coords, row)))

    @inline
    def report_row(status, coords, row, batch):
        if is_outside(coords, row, batch):
            report(status, RAISE_RANGE, row, 0, coords[row, 0], 0, batch - 1, "coords")
        else:
            report(status, RAISE_ORDER, row, coords[row, 0], before(coords, row))

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, status_: T.handle, offsets_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("batch_offsets")})
        n, columns = T.int64(), T.int64()
        coords = match_buffer(coords_, (n, 4), "int32")
        status = T.meta_var(match_status(status_))
        offsets = match_buffer(offsets_, (columns,), "int32")
        find_first(
            status,
            n,
            lambda row: violates(coords, row, columns - 1),
            lambda row: report_row(status, coords, row, columns - 1),
        )
        find_starts(lambda row: coords[row, 0], n, offsets, columns)

    return reporting(kernel)
