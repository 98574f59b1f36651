"""Softmax over the last axis: a warp a row, or a block where rows are long."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..spec.softmax import Softmax
from ..vector_math import exp
from .gpu import WARP, Gpu, kernel_name
from .launch import THREADS, blocks_for
from .reductions import WARPS, add, over_block, over_lanes

LONG = 1024  # columns from which on a block takes a row


def larger(a, b):
    """The larger one; NaN may be passed over, its exponential is not."""
    return T.max(a, b)


@cache
def softmax(spec: Softmax, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Softmax`."""
    rank, dtype = spec.rank, spec.dtype
    *outer, columns = shape = [tvm.tirx.Var(f"n{axis}", "int64") for axis in range(rank)]
    rows = tvm.tirx.IntImm("int64", 1)
    for dim in outer:
        rows = rows * dim

    def weight_of(x, row, c, largest):
        return exp(T.Cast("float32", x[row, c]) - largest)

    @inline
    def of_row(x, out, row, first, step, combine_all):
        """A row, of which each thread takes the columns `first`, `first + step` and so on."""
        largest = T.alloc_local((1,), "float32")
        total = T.alloc_local((1,), "float32")
        turns: T.let = T.if_then_else(row < rows, (columns - first + step - 1) // step, T.int64(0))
        largest[0] = T.float32("-inf")
        for i in range(turns):
            largest[0] = T.max(largest[0], T.Cast("float32", x[row, first + i * step]))
        combine_all(largest, larger)
        total[0] = T.float32(0)
        for i in range(turns):
            total[0] += weight_of(x, row, first + i * step, largest[0])
        combine_all(total, add)
        total[0] = T.float32(1) / total[0]
        for i in range(turns):
            out[row, first + i * step] = T.Cast(dtype, weight_of(x, row, first + i * step, largest[0]) * total[0])

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("softmax", dtype)})
        x_nd = match_buffer(x_, shape, dtype)
        out_nd = match_buffer(out_, shape, dtype)
        x = T.decl_buffer((rows, columns), dtype, data=x_nd.data)
        out = T.decl_buffer((rows, columns), dtype, data=out_nd.data)
        if columns < LONG:
            with T.launch_thread("blockIdx.x", blocks_for(rows, WARPS)) as block:
                thread = T.launch_thread("threadIdx.x", THREADS)
                row: T.let = T.Cast("int64", block) * WARPS + T.Cast("int64", thread // WARP)
                of_row(x, out, row, T.Cast("int64", thread % WARP), WARP, lambda cell, how: over_lanes(cell, 0, how))
        else:
            with T.launch_thread("blockIdx.x", blocks_for(rows, 1)) as block:
                thread = T.launch_thread("threadIdx.x", THREADS)
                shared = T.alloc_shared((WARPS,), "float32")
                of_row(
                    *(x, out, T.Cast("int64", block), T.Cast("int64", thread), THREADS),
                    lambda cell, how: over_block(cell, 0, how, shared, thread),
                )

    return kernel
