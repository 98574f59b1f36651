"""Residual addition with a gate, as adaptive layer norm uses it: `out[i, :] = x[i, :] + y[i, :] * gate[b, :]`.

b is 0, or the batch element that row i belongs to. Computed in float32.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters
from .layer_norm import check_batch_index

CHUNK = 16  # rows of one task


def naive(x, y, gate, batch_index=None):
    """Oracle, in float64. x, y [N, C], gate [B, C], batch_index int [N] -> [N, C]."""
    rows = np.zeros(len(x), int) if batch_index is None else batch_index
    return x.astype(np.float64) + y.astype(np.float64) * gate[rows].astype(np.float64)


@cache
def modulated_add(channels: int, dtype: str = "float32", has_index: bool = False) -> tvm.tirx.PrimFunc:
    """PrimFunc (x, y, gate, [batch_index,] out).

    x, y, out `dtype` [N, C]; gate float32 [B, C], of which every row takes the first, or that of batch_index int32 [N]:
    ValueError for an index outside of 0 .. B - 1.
    """

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, y_: T.handle, gate_: T.handle, batch_index_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"modulated_add_{dtype}"})
        n, batch = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        y = match_buffer(y_, (n, channels), dtype)
        gate = match_buffer(gate_, (batch, channels), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        out = match_buffer(out_, (n, channels), dtype)
        if has_index:
            check_batch_index(batch_index, n, batch)
        for chunk in T.parallel((n + CHUNK - 1) // CHUNK):
            for i in range(T.min(T.int64(CHUNK), n - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                b: T.let = T.Cast("int64", batch_index[row]) if has_index else T.int64(0)
                for c in range(channels):
                    out[row, c] = T.Cast(dtype, T.Cast("float32", x[row, c]) + T.Cast("float32", y[row, c]) * gate[b, c])

    return kernel if has_index else drop_parameters(kernel, "batch_index")
