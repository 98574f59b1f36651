"""RMS normalisation of every attention head, as upstream applies it to queries and keys.

out[i, h, :] = x[i, h, :] / max(|x[i, h, :]|, 1e-12) * gamma[h, :] * sqrt(D)
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from .rows import row_sum

CHUNK = 16  # rows of one task
SMALLEST_NORM = 1e-12


def naive(x, gamma):
    """Oracle, in float64. x [N, H, D], gamma [H, D] -> [N, H, D]."""
    x = x.astype(np.float64)
    norm = np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), SMALLEST_NORM)
    return x / norm * gamma * np.sqrt(x.shape[-1])


@cache
def rms_norm_heads(heads: int, depth: int, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """PrimFunc (x `dtype` [N, H, D], gamma float32 [H, D], out `dtype` [N, H, D])."""

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, gamma_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"rms_norm_heads_{dtype}"})
        n = T.int64()
        x = match_buffer(x_, (n, heads, depth), dtype)
        gamma = match_buffer(gamma_, (heads, depth), "float32")
        out = match_buffer(out_, (n, heads, depth), dtype)
        for chunk in T.parallel((n + CHUNK - 1) // CHUNK):
            total = T.alloc_buffer((1,), "float32")
            for i, h in T.grid(T.min(T.int64(CHUNK), n - chunk * CHUNK), heads):
                row: T.let = chunk * CHUNK + i
                row_sum(total, depth, lambda c: T.Cast("float32", x[row, h, c]) * T.Cast("float32", x[row, h, c]))
                scaling: T.let = T.float32(np.sqrt(depth)) / T.max(T.sqrt(total[0]), T.float32(SMALLEST_NORM))
                for c in range(depth):
                    out[row, h, c] = T.Cast(dtype, T.Cast("float32", x[row, h, c]) * scaling * gamma[h, c])

    return kernel
