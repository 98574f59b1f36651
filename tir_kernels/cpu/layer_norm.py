"""Layer normalisation of rows, with the modulation of adaptive layer norm; mean and variance in two passes."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters, inline
from ..spec.layer_norm import LayerNorm
from ..vector_math import EMIT
from .guards import check_batch_index
from .isa import Isa
from .rows import row_sum

CHUNK = 16  # rows of one task


@cache
def layer_norm(spec: LayerNorm, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `LayerNorm`."""
    channels, dtype, has_index, eps = spec.channels, spec.dtype, spec.has_index, spec.eps
    act = EMIT[spec.activation]

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
