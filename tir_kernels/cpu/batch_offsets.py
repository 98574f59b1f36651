"""Where the rows of each batch element start, and chunks that start with their batch element."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_ORDER, RAISE_RANGE
from ..script import inline
from ..spec.batch_offsets import BatchOffsets
from .isa import Isa


@inline
def cut(offsets, batch, size, chunks, chunk_first, chunk_rows, chunk_batch):
    """Cut every batch element into chunks of at most `size` rows.

    chunks[0] = their number, at most rows // size + batch; for each, in order: its first row, its rows and its batch
    element.
    """
    chunks[0] = T.int64(0)
    for b in range(batch):
        first: T.let = T.Cast("int64", offsets[b])
        rows: T.let = T.Cast("int64", offsets[b + 1]) - first
        for i in range((rows + size - 1) // size):
            chunk_first[chunks[0] + i] = first + i * size
            chunk_rows[chunks[0] + i] = T.min(T.int64(size), rows - i * size)
            chunk_batch[chunks[0] + i] = T.Cast("int64", b)
        chunks[0] += (rows + size - 1) // size


@cache
def batch_offsets(spec: BatchOffsets, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `BatchOffsets`."""

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, offsets_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "batch_offsets"})
        n, columns = T.int64(), T.int64()
        coords = match_buffer(coords_, (n, 4), "int32")
        offsets = match_buffer(offsets_, (columns,), "int32")
        last = T.alloc_buffer((1,), "int64")  # offsets are written up to this batch index
        last[0] = T.int64(0)
        offsets[0] = T.int32(0)
        for row in range(n):
            b: T.let = T.Cast("int64", coords[row, 0])
            if b != last[0]:
                if T.Or(b < 0, b >= columns - 1):
                    T.evaluate(T.call_packed(RAISE_RANGE, row, T.int32(0), b, T.int32(0), columns - 2))
                if b < last[0]:
                    T.evaluate(T.call_packed(RAISE_ORDER, row, b, last[0]))
                for skipped in range(b - last[0]):
                    offsets[last[0] + 1 + skipped] = T.Cast("int32", row)
                last[0] = b
        for skipped in range(columns - 1 - last[0]):
            offsets[last[0] + 1 + skipped] = T.Cast("int32", n)

    return kernel
