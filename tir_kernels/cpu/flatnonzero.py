"""The rows that a mask keeps: counted by chunks, numbered chunk by chunk, and written where the chunk's own begin."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..bounds import LinearBound, with_bounds
from ..buffers import match_buffer
from ..integers import is_kept
from ..spec.flatnonzero import CHUNK, CountNonzero, FillNonzero
from .isa import Isa


@cache
def count_nonzero(spec: CountNonzero, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `CountNonzero`."""
    dtype = spec.dtype

    @script.prim_func(s_tir=True)
    def kernel(mask_: T.handle, before_: T.handle, count_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"count_nonzero_{dtype}"})
        rows, chunks = T.int64(), T.int64()
        mask = match_buffer(mask_, (rows,), dtype)
        before = match_buffer(before_, (chunks,), "int64")
        count = match_buffer(count_, (1,), "int64")
        for chunk in T.parallel(chunks):
            here = T.alloc_buffer((1,), "int32")
            here[0] = T.int32(0)
            for i in range(T.min(T.int64(CHUNK), rows - chunk * CHUNK)):
                here[0] = here[0] + T.Cast("int32", is_kept(mask[chunk * CHUNK + i], dtype))
            before[chunk] = T.Cast("int64", here[0])
        count[0] = T.int64(0)
        for chunk in range(chunks):
            own: T.let = before[chunk]
            before[chunk] = count[0]
            count[0] = count[0] + own

    return with_bounds(kernel, count=[[LinearBound(1)]])


@cache
def fill_nonzero(spec: FillNonzero, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `FillNonzero`."""
    dtype = spec.dtype

    @script.prim_func(s_tir=True)
    def kernel(mask_: T.handle, before_: T.handle, index_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"fill_nonzero_{dtype}"})
        rows, chunks, kept = T.int64(), T.int64(), T.int64()
        mask = match_buffer(mask_, (rows,), dtype)
        before = match_buffer(before_, (chunks,), "int64")
        index = match_buffer(index_, (kept,), "int32")
        for chunk in T.parallel(chunks):
            place = T.alloc_buffer((1,), "int64")
            place[0] = before[chunk]
            for i in range(T.min(T.int64(CHUNK), rows - chunk * CHUNK)):
                if is_kept(mask[chunk * CHUNK + i], dtype):
                    index[place[0]] = T.Cast("int32", chunk * CHUNK + i)
                    place[0] = place[0] + 1

    return kernel
