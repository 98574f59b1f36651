"""The rows that a mask keeps: counted by chunks, which are the tiles of prefix sums, and written where each is numbered."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..bounds import LinearBound, with_bounds
from ..buffers import match_buffer
from ..integers import is_kept
from ..script import inline
from ..spec.flatnonzero import CHUNK, CountNonzero, FillNonzero
from .gpu import Gpu, kernel_name, stating
from .scan import SCAN_REGISTERS, TILE, scan_by_one_block, scan_tiles, sum_tiles

assert CHUNK == TILE, "chunks are tiles"


@cache
def count_nonzero(spec: CountNonzero, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `CountNonzero`."""
    dtype = spec.dtype

    @script.prim_func(s_tir=True)
    def kernel(mask_: T.handle, before_: T.handle, count_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name(f"count_nonzero_{dtype}")})
        rows, chunks = T.int64(), T.int64()
        mask = match_buffer(mask_, (rows,), dtype)
        before = match_buffer(before_, (chunks,), "int64")
        count = match_buffer(count_, (1,), "int64")
        sum_tiles(lambda place: is_kept(mask[place], dtype), before, rows)
        scan_by_one_block(before, before, chunks, count)

    return stating(with_bounds(kernel, count=[[LinearBound(1)]]), SCAN_REGISTERS)


@cache
def fill_nonzero(spec: FillNonzero, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `FillNonzero`."""
    dtype = spec.dtype

    @inline
    def store(index, place, before, value):
        if value != 0:
            index[T.Cast("int64", before)] = T.Cast("int32", place)

    @script.prim_func(s_tir=True)
    def kernel(mask_: T.handle, before_: T.handle, index_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name(f"fill_nonzero_{dtype}")})
        rows, chunks, kept = T.int64(), T.int64(), T.int64()
        mask = match_buffer(mask_, (rows,), dtype)
        before = match_buffer(before_, (chunks,), "int64")
        index = match_buffer(index_, (kept,), "int32")
        scan_tiles(lambda place: is_kept(mask[place], dtype), before, rows, "int32", lambda *of_place: store(index, *of_place))

    return stating(kernel, SCAN_REGISTERS)
