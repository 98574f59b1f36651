"""RMS normalisation of every attention head."""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.rms_norm_heads import SMALLEST_NORM, RmsNormHeads
from .isa import Isa
from .rows import row_sum

CHUNK = 16  # rows of one task


@cache
def rms_norm_heads(spec: RmsNormHeads, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `RmsNormHeads`."""
    heads, depth, dtype = spec.heads, spec.depth, spec.dtype

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
