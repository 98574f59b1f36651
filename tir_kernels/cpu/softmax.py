"""Softmax over the last axis: `out[i, :] = exp(x[i, :] - max) / sum(exp(x[i, :] - max))`, in float32."""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from .rows import row_max, row_sum
from .vector_math import exp

CHUNK = 8192  # elements of one task, or one row


def naive(x):
    """Oracle, in float64. x [..., C] -> [..., C]."""
    x = x.astype(np.float64)
    weights = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
    return weights / weights.sum(-1, keepdims=True)


@cache
def softmax(rank: int, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """PrimFunc (x, out), both `dtype` [..., C] of one shape with `rank` >= 1 dimensions of any size."""
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
