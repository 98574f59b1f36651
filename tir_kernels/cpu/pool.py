"""Pooling through a kernel map of pairs.

A block of output rows is one thread's, which walks its taps in order, so the order of every sum is fixed.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..reduction import add, finish, initial
from ..script import inline
from ..spec.pool import Pool
from .guards import check_map
from .isa import Isa


@cache
def pool(spec: Pool, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Pool`."""
    channels, reduction, dtype = spec.channels, spec.reduction, spec.dtype
    direct = dtype == "float32"  # a narrower output is reduced in a float32 scratch of the block

    @inline
    def reduce_block(x, pair_in, pair_out, segment, out, block, first, rows, taps, counts, base, sums):
        """out[first : first + rows, :], reduced in the rows of `sums` from `base` on"""
        for row in range(rows):
            counts[row] = T.int32(0)
            for c in range(channels):
                sums[base + row, c] = initial(reduction)
        for pair in range(T.Cast("int64", segment[block, taps])):
            source: T.let = T.Cast("int64", pair_in[block, pair])
            target: T.let = T.Cast("int64", pair_out[block, pair])
            counts[target] += 1
            for c in range(channels):
                sums[base + target, c] = add(reduction, sums[base + target, c], T.Cast("float32", x[source, c]))
        for row in range(rows):
            for c in range(channels):
                out[first + row, c] = T.Cast(dtype, finish(reduction, sums[base + row, c], counts[row]))

    @inline
    def reduce_in_scratch(x, pair_in, pair_out, segment, out, block, first, rows, taps, counts, block_rows):
        sums = T.alloc_buffer((block_rows, channels), "float32")
        reduce_block(x, pair_in, pair_out, segment, out, block, first, rows, taps, counts, T.int64(0), sums)

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, pair_in_: T.handle, pair_out_: T.handle, segment_: T.handle, map_rows_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"pool_{reduction.mode}_{dtype}"})
        n, m, blocks, slots, columns = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
        pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        map_rows = match_buffer(map_rows_, (2,), "int64")
        out = match_buffer(out_, (m, channels), dtype)
        taps: T.let = columns - 1
        check_map(map_rows, n, m, taps, taps)
        for block in T.parallel(blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring blocks cost alike: deal them out
            first: T.let = block * (slots // taps)
            rows: T.let = T.min(slots // taps, m - first)
            counts = T.alloc_buffer((slots // (columns - 1),), "int32")
            if direct:
                reduce_block(x, pair_in, pair_out, segment, out, block, first, rows, taps, counts, first, out)
            else:
                reduce_in_scratch(
                    *(x, pair_in, pair_out, segment, out), block, first, rows, taps, counts, slots // (columns - 1)
                )

    return kernel
