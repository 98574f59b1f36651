"""Pooling over an index.

The rows are first sorted by their index, keeping their order. Then an element of the result belongs to one thread, which takes
the rows of its segment in order; or, where segments are long, to the same channel of all warps of a block: each takes every
LANES-th row, and the first one puts them together in order.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..reduction import add, finish, initial
from ..script import inline
from ..spec.segment_pool import SegmentPool
from .gpu import WARP, Gpu, kernel_name
from .guards import check_index, match_status, reporting
from .launch import for_each
from .sort import bits_below, find_starts, sort_pairs

LANES = 32  # rows that a block takes at once
AHEAD = 4  # rows that a thread loads before it adds them
LONG = 64  # rows to a segment, on average, from which on a block takes each


@cache
def segment_pool(spec: SegmentPool, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `SegmentPool`."""
    channels, reduction, dtype = spec.channels, spec.reduction, spec.dtype
    panels = -(-channels // WARP)
    first_only = reduction.mode == "first"

    @inline
    def write_key(index, keys, n, m, i):
        """what goes nowhere comes last"""
        keys[i] = T.if_then_else(T.And(index[i] >= 0, T.Cast("int64", index[i]) < m), index[i], T.Cast("int32", m))

    @inline
    def add_rows(x, order, value, begin, end, step, c):
        """value[0] goes on with every `step`-th of the rows from place `begin` to `end`"""
        given = T.alloc_local((AHEAD,), "float32")
        for i in range((end - begin + step * AHEAD - 1) // (step * AHEAD)):
            for j in T.unroll(AHEAD):
                given[j] = initial(reduction)
                if begin + (i * AHEAD + j) * step < end:
                    given[j] = T.Cast("float32", x[T.Cast("int64", order[begin + (i * AHEAD + j) * step]), c])
            for j in T.unroll(AHEAD):
                value[0] = add(reduction, value[0], given[j])

    @inline
    def reduce_alone(x, order, starts, out, place):
        value = T.alloc_local((1,), "float32")
        row: T.let = place // channels
        c: T.let = place % channels
        begin: T.let = starts[row]
        end: T.let = starts[row + 1]
        value[0] = initial(reduction)
        if first_only:
            if begin < end:
                value[0] = T.Cast("float32", x[T.Cast("int64", order[begin]), c])
        else:
            add_rows(x, order, value, begin, end, 1, c)
        out[row, c] = T.Cast(dtype, finish(reduction, value[0], end - begin))

    @inline
    def reduce_together(x, order, starts, out, m):
        with T.launch_thread("blockIdx.x", T.max(m * panels, T.int64(1))) as block:
            thread = T.launch_thread("threadIdx.x", LANES * WARP)
            T.attr(T.int32(0), "pragma_unroll_explicit", 0)
            value = T.alloc_local((1,), "float32")
            parts = T.alloc_shared((LANES, WARP), "float32")
            row: T.let = T.Cast("int64", block // panels)
            c: T.let = block % panels * WARP + thread % WARP
            lane: T.let = thread // WARP
            value[0] = initial(reduction)
            if T.And(row < m, c < channels):
                add_rows(x, order, value, starts[row] + lane, starts[row + 1], LANES, c)
            parts[lane, thread % WARP] = value[0]
            T.tvm_storage_sync("shared")
            if T.And(T.And(row < m, c < channels), lane == 0):
                for other in range(1, LANES):
                    value[0] = add(reduction, value[0], parts[other, thread])
                out[row, c] = T.Cast(dtype, finish(reduction, value[0], starts[row + 1] - starts[row]))

    @inline
    def reduce(x, order, starts, out, n, m):
        if first_only:
            for_each(m * channels, lambda place: reduce_alone(x, order, starts, out, place))
        else:
            if n < m * LONG:
                for_each(m * channels, lambda place: reduce_alone(x, order, starts, out, place))
            else:
                reduce_together(x, order, starts, out, m)

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, index_: T.handle, status_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name(f"segment_pool_{reduction.mode}", dtype)})
        n, m = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        index = match_buffer(index_, (n,), "int32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (m, channels), dtype)
        keys = T.alloc_buffer((n,), "int32")
        sorted_keys = T.alloc_buffer((n,), "int32")
        order = T.alloc_buffer((n,), "int32")
        starts = T.alloc_buffer((m + 1,), "int32")
        check_index(status, index, n, m)
        for_each(n, lambda i: write_key(index, keys, n, m, i))
        sort_pairs(keys, None, sorted_keys, order, n, bits_below(m + 1))
        find_starts(sorted_keys, n, starts, m + 1)
        reduce(x, order, starts, out, n, m)

    return reporting(kernel)
