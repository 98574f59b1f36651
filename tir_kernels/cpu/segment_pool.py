"""Pooling over an index.

The rows are first sorted by their index (a counting sort, which keeps their order). An output row then belongs to one
thread, so the order of every sum is fixed. Wide rows are cut into panels of channels, so that few output rows, as in
pooling over a batch, still occupy many threads.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..reduction import add, finish, initial
from ..script import inline
from ..spec.segment_pool import SegmentPool
from .guards import check_index
from .isa import Isa

PANEL = 64  # channels, and
ROWS = 64  # output rows of one task


@inline
def sort_by_index(index, n, m, start, order):
    """order[start[o]:start[o + 1]] = the rows i with index[i] == o, ascending; start [m + 2], order [n]."""
    for row in range(m + 2):
        start[row] = T.int32(0)
    for i in range(n):
        start[T.Cast("int64", index[i]) + 2] += T.if_then_else(index[i] >= 0, 1, 0)
    for row in range(m):
        start[row + 2] += start[row + 1]
    for i in range(n):
        if index[i] >= 0:  # start[o + 1] runs from the first place of row o to its end
            order[start[T.Cast("int64", index[i]) + 1]] = T.Cast("int32", i)
            start[T.Cast("int64", index[i]) + 1] += 1


@cache
def segment_pool(spec: SegmentPool, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SegmentPool`."""
    channels, reduction, dtype = spec.channels, spec.reduction, spec.dtype
    panels = -(-channels // PANEL)
    first_only = reduction.mode == "first"

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, index_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"segment_pool_{reduction.mode}_{dtype}"})
        n, m = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        index = match_buffer(index_, (n,), "int32")
        out = match_buffer(out_, (m, channels), dtype)
        start = T.alloc_buffer((m + 2,), "int32")
        order = T.alloc_buffer((n,), "int32")
        check_index(index, n, m)
        sort_by_index(index, n, m, start, order)
        for task in T.parallel((m + ROWS - 1) // ROWS * panels):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring tasks cost alike: deal them out
            value = T.alloc_buffer((PANEL,), "float32")
            first: T.let = task // panels * ROWS
            column: T.let = task % panels * PANEL
            width: T.let = T.min(T.int64(PANEL), channels - column)
            for row in range(T.min(T.int64(ROWS), m - first)):
                begin: T.let = start[first + row]
                count: T.let = start[first + row + 1] - begin
                for c in range(width):
                    value[c] = initial(reduction)
                for i in range(T.min(count, 1) if first_only else count):
                    source: T.let = T.Cast("int64", order[begin + i])
                    for c in range(width):
                        given = T.meta_var(T.Cast("float32", x[source, column + c]))
                        value[c] = given if first_only else add(reduction, value[c], given)
                for c in range(width):
                    out[first + row, column + c] = T.Cast(dtype, finish(reduction, value[c], count))

    return kernel
