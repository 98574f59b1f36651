"""Layer normalisation of rows, with the modulation of adaptive layer norm.

    out[i, :] = act(((x[i, :] - mean) / sqrt(variance + eps) * weight + bias) * (1 + scale[b, :]) + shift[b, :])

where b is 0, or the batch element that row i belongs to. Mean and variance are those of row i, in two passes, float32.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_BATCH_INDEX
from ..script import drop_parameters, inline
from .rows import row_sum
from .vector_math import ACTIVATIONS

CHUNK = 16  # rows of one task


def naive(x, weight=None, bias=None, scale=None, shift=None, batch_index=None, eps=1e-6, activation="none"):
    """Oracle, in float64. x [N, C], weight, bias [C], scale, shift [B, C], batch_index int [N] -> [N, C]."""
    x = x.astype(np.float64)
    out = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps)
    out = out * (1 if weight is None else weight) + (0 if bias is None else bias)
    rows = np.zeros(len(x), int) if batch_index is None else batch_index
    out = out * (1 if scale is None else 1 + scale[rows]) + (0 if shift is None else shift[rows])
    return ACTIVATIONS[activation].naive(out)


@inline
def check_batch_index(batch_index, count, batch):
    """Raise for the first of the `count` entries of `batch_index` outside of 0 to batch - 1."""
    lowest = T.alloc_buffer((1,), "int32")
    highest = T.alloc_buffer((1,), "int32")
    lowest[0] = T.int32(0)
    highest[0] = T.int32(-1)
    for i in range(count):
        lowest[0] = T.min(lowest[0], batch_index[i])
        highest[0] = T.max(highest[0], batch_index[i])
    if T.Or(lowest[0] < 0, T.Cast("int64", highest[0]) >= batch):
        for i in range(count):
            if T.Or(batch_index[i] < 0, T.Cast("int64", batch_index[i]) >= batch):
                T.evaluate(T.call_packed(RAISE_BATCH_INDEX, i, batch_index[i], batch))


@cache
def layer_norm(
    channels: int, dtype: str = "float32", has_index: bool = False, eps: float = 1e-6, activation: str = "none"
) -> tvm.tirx.PrimFunc:
    """PrimFunc (x, weight, bias, scale, shift, [batch_index,] out).

    x, out `dtype` [N, C]; weight, bias float32 [C]; scale, shift float32 [B, C], of which every row takes the first, or
    that of batch_index int32 [N]: ValueError for an index outside of 0 .. B - 1.
    """
    act = ACTIVATIONS[activation].emit

    @inline
    def combine(factor, addend, weight, bias, scale, shift, b):
        """factor, addend [C]: weight and bias under the modulation of batch element b, for many rows."""
        for c in range(channels):
            factor[c] = weight[c] * (T.float32(1) + scale[b, c])
            addend[c] = bias[c] * (T.float32(1) + scale[b, c]) + shift[b, c]

    @inline
    def normalise(x, weight, bias, scale, shift, batch_index, out, n):
        for chunk in T.parallel((n + CHUNK - 1) // CHUNK):
            total = T.alloc_buffer((1,), "float32")
            element = T.alloc_buffer((1,), "int64")
            factor = T.alloc_buffer((channels,), "float32")
            addend = T.alloc_buffer((channels,), "float32")
            element[0] = T.int64(-1)
            for i in range(T.min(T.int64(CHUNK), n - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                b: T.let = T.Cast("int64", batch_index[row]) if has_index else T.int64(0)
                if b != element[0]:
                    combine(factor, addend, weight, bias, scale, shift, b)
                    element[0] = b
                row_sum(total, channels, lambda c: T.Cast("float32", x[row, c]))
                mean: T.let = total[0] / T.float32(channels)
                row_sum(
                    total,
                    channels,
                    lambda c: (T.Cast("float32", x[row, c]) - mean) * (T.Cast("float32", x[row, c]) - mean),
                )
                scaling: T.let = T.float32(1) / T.sqrt(total[0] / T.float32(channels) + T.float32(eps))
                for c in range(channels):
                    out[row, c] = T.Cast(dtype, act((T.Cast("float32", x[row, c]) - mean) * scaling * factor[c] + addend[c]))

    @script.prim_func(s_tir=True)
    def kernel(
        x_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        scale_: T.handle,
        shift_: T.handle,
        batch_index_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"layer_norm_{dtype}"})
        n, batch = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        weight = match_buffer(weight_, (channels,), "float32")
        bias = match_buffer(bias_, (channels,), "float32")
        scale = match_buffer(scale_, (batch, channels), "float32")
        shift = match_buffer(shift_, (batch, channels), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        out = match_buffer(out_, (n, channels), dtype)
        if has_index:
            check_batch_index(batch_index, n, batch)
        normalise(x, weight, bias, scale, shift, batch_index, out, n)

    return kernel if has_index else drop_parameters(kernel, "batch_index")
