"""Softmax over the last axis."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.softmax import Softmax
from ..vector_math import exp
from .isa import Isa
from .rows import row_max, row_sum

CHUNK = 8192  # elements of one task, or one row


@cache
def softmax(spec: Softmax, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Softmax`."""
    rank, dtype = spec.rank, spec.dtype
    *outer, columns = shape = [tvm.tirx.Var(f"n{axis}", "int64") for axis in range(rank)]
    rows = tvm.tirx.IntImm("int64", 1)
    for dim in outer:
        rows = rows * dim

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"softmax_{dtype}"})
        x_nd = match_buffer(x_, shape, dtype)
        out_nd = match_buffer(out_, shape, dtype)
        x = T.decl_buffer((rows, columns), dtype, data=x_nd.data)
        out = T.decl_buffer((rows, columns), dtype, data=out_nd.data)
        chunk_rows: T.let = CHUNK // (columns + 1) + 1  # there may be no columns
        for chunk in T.parallel((rows + chunk_rows - 1) // chunk_rows):
            largest = T.alloc_buffer((1,), "float32")
            total = T.alloc_buffer((1,), "float32")
            weights = T.alloc_buffer((columns,), "float32")
            for i in range(T.min(chunk_rows, rows - chunk * chunk_rows)):
                row: T.let = chunk * chunk_rows + i
                row_max(largest, columns, lambda c: T.Cast("float32", x[row, c]))
                for c in range(columns):
                    weights[c] = exp(T.Cast("float32", x[row, c]) - largest[0])
                row_sum(total, columns, lambda c: weights[c])
                scaling: T.let = T.float32(1) / total[0]
                for c in range(columns):
                    out[row, c] = T.Cast(dtype, weights[c] * scaling)

    return kernel
