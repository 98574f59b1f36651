"""Pooling over an index.

The rows are first sorted by their index, keeping their order. Then a vector of channels of the result belongs to one thread,
which takes the rows of its segment in order. Where segments are long a block has WARP channels of one instead: each of its
warps takes every LANES-th row, and the first one puts them together in order.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..reduction import add, finish, initial
from ..script import inline
from ..spec.segment_pool import SegmentPool
from .gpu import WARP, Gpu, kernel_name, stating
from .guards import check_index, match_status, reporting
from .launch import for_each, left_to_nvcc
from .sort import SORT_REGISTERS, bits_below, find_starts, sort_pairs
from .vectors import load_vector, store_vector, width

LANES = 32  # rows that a block takes at once
AHEAD = 4  # rows that a thread loads before it adds them
LONG = 64  # rows to a segment, on average, from which on a block takes each


@cache
def segment_pool(spec: SegmentPool, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `SegmentPool`."""
    channels, reduction, dtype = spec.channels, spec.reduction, spec.dtype
    panels = -(-channels // WARP)
    width_alone = width(dtype, channels)
    pieces = channels // width_alone  # of a row
    first_only = reduction.mode == "first"

    @inline
    def write_key(index, keys, n, m, i):
        """what goes nowhere comes last"""
        keys[i] = T.if_then_else(T.And(index[i] >= 0, T.Cast("int64", index[i]) < m), index[i], T.Cast("int32", m))

    @inline
    def add_rows(x, order, value, begin, end, step, c, lanes):
        """value [lanes] go on with every `step`-th of the rows from place `begin` to `end`, from channel c on"""
        given = T.alloc_local((AHEAD * lanes,), dtype)
        there = T.alloc_local((AHEAD,), "bool")
        for i in range((end - begin + step * AHEAD - 1) // (step * AHEAD)):
            for j in T.unroll(AHEAD):
                there[j] = begin + (i * AHEAD + j) * step < end
                if there[j]:
                    load_vector(given, j * lanes, x, T.Cast("int64", order[begin + (i * AHEAD + j) * step]), c, lanes)
            for j in T.unroll(AHEAD):
                if there[j]:
                    for lane in T.unroll(lanes):
                        value[lane] = add(reduction, value[lane], T.Cast("float32", given[j * lanes + lane]))

    @inline
    def reduce_alone(x, order, starts, out, row, c):
        left_to_nvcc()
        value = T.alloc_local((width_alone,), "float32")
        given = T.alloc_local((width_alone,), dtype)
        begin: T.let = starts[row]
        end: T.let = starts[row + 1]
        for lane in T.unroll(width_alone):
            value[lane] = initial(reduction)
        if first_only:
            if begin < end:
                load_vector(given, 0, x, T.Cast("int64", order[begin]), c, width_alone)
                for lane in T.unroll(width_alone):
                    value[lane] = T.Cast("float32", given[lane])
        else:
            add_rows(x, order, value, begin, end, 1, c, width_alone)
        for lane in T.unroll(width_alone):
            value[lane] = finish(reduction, value[lane], end - begin)
        store_vector(out, row, c, value, width_alone)

    @inline
    def reduce_each(x, order, starts, out, m):
        for_each(m * pieces, lambda place: reduce_alone(x, order, starts, out, place // pieces, place % pieces * width_alone))

    @inline
    def reduce_together(x, order, starts, out, m):
        with T.launch_thread("blockIdx.x", T.max(m * panels, T.int64(1))) as block:
            thread = T.launch_thread("threadIdx.x", LANES * WARP)
            left_to_nvcc()
            value = T.alloc_local((1,), "float32")
            parts = T.alloc_shared((LANES, WARP), "float32")
            row: T.let = T.Cast("int64", block // panels)
            c: T.let = block % panels * WARP + thread % WARP
            lane: T.let = thread // WARP
            value[0] = initial(reduction)
            if T.And(row < m, c < channels):
                add_rows(x, order, value, starts[row] + lane, starts[row + 1], LANES, c, 1)
            parts[lane, thread % WARP] = value[0]
            T.tvm_storage_sync("shared")
            if T.And(T.And(row < m, c < channels), lane == 0):
                for other in range(1, LANES):
                    value[0] = add(reduction, value[0], parts[other, thread])
                out[row, c] = T.Cast(dtype, finish(reduction, value[0], starts[row + 1] - starts[row]))

    @inline
    def reduce(x, order, starts, out, n, m):
        if first_only:
            reduce_each(x, order, starts, out, m)
        else:
            if n < m * LONG:
                reduce_each(x, order, starts, out, m)
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

    return stating(reporting(kernel), SORT_REGISTERS)
