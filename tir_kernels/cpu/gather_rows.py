"""Row selection: `out[i, :] = x[index[i], :]`, and zeros where the index is -1. Nearest upsampling is this.

    out = x[inverse], where `inverse` is the row of the coarse voxel that each fine voxel lies in

A chunk of output rows is one thread's. The index is checked first, whole, so that no thread reads out of bounds.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_INDEX
from ..script import inline

CHUNK = 64  # rows that one task copies


def naive(x, index):
    """Oracle, in float64 (integers stay what they are). x [N, C], index int [M] -> [M, C]."""
    wide = x if x.dtype.kind in "iu" else x.astype(np.float64)
    out = np.zeros((len(index), x.shape[1]), wide.dtype)
    out[index >= 0] = wide[index[index >= 0]]
    return out


@inline
def check_index(index, count, rows):
    """Raise for the first of the `count` entries of `index` that is neither a row, from 0 to rows - 1, nor -1."""
    lowest = T.alloc_buffer((1,), "int32")
    highest = T.alloc_buffer((1,), "int32")
    lowest[0] = T.int32(0)
    highest[0] = T.int32(-1)
    for i in range(count):
        lowest[0] = T.min(lowest[0], index[i])
        highest[0] = T.max(highest[0], index[i])
    if T.Or(lowest[0] < -1, T.Cast("int64", highest[0]) >= rows):
        for i in range(count):
            if T.Or(index[i] < -1, T.Cast("int64", index[i]) >= rows):
                T.evaluate(T.call_packed(RAISE_INDEX, i, index[i], rows))


@cache
def gather_rows(channels: int, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """PrimFunc (x `dtype` [N, C], index int32 [M], out `dtype` [M, C]); ValueError for an index not in -1 .. N - 1."""

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, index_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"gather_rows_{dtype}"})
        n, m = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        index = match_buffer(index_, (m,), "int32")
        out = match_buffer(out_, (m, channels), dtype)
        check_index(index, m, n)
        for chunk in T.parallel((m + CHUNK - 1) // CHUNK):
            for i in range(T.min(T.int64(CHUNK), m - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                source: T.let = T.Cast("int64", index[row])
                if source >= 0:
                    for c in range(channels):
                        out[row, c] = x[source, c]
                else:
                    for c in range(channels):
                        out[row, c] = T.Cast(dtype, 0)

    return kernel
