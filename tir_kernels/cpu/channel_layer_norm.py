"""Layer normalisation over the channels of dense tensors.

Mean and variance are taken in two passes. A task takes a few neighbouring sites: it copies their channels, which lie far
apart, side by side into cache and works from there, with the sites as vector lanes.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.channel_layer_norm import ChannelLayerNorm
from ..vector_math import EMIT
from .isa import Isa

COPY = 32768  # elements that a task copies, if that leaves it 64 to 512 sites


@cache
def channel_layer_norm(spec: ChannelLayerNorm, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `ChannelLayerNorm`."""
    channels, rank, dtype, eps = spec.channels, spec.rank, spec.dtype, spec.eps
    act = EMIT[spec.activation]
    width = max(64, min(512, COPY // max(channels, 1) // 64 * 64))  # sites of one task
    batch, *spatial = (tvm.tirx.Var(name, "int64") for name in ("b", *(f"n{axis}" for axis in range(rank - 2))))
    sites = tvm.tirx.IntImm("int64", 1)
    for dim in spatial:
        sites = sites * dim

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"channel_layer_norm_{dtype}"})
        x_nd = match_buffer(x_, (batch, channels, *spatial), dtype)
        weight = match_buffer(weight_, (channels,), "float32")
        bias = match_buffer(bias_, (channels,), "float32")
        out_nd = match_buffer(out_, (batch, channels, *spatial), dtype)
        x = T.decl_buffer((batch, channels, sites), dtype, data=x_nd.data)
        out = T.decl_buffer((batch, channels, sites), dtype, data=out_nd.data)
        blocks: T.let = (sites + width - 1) // width
        for task in T.parallel(batch * blocks):
            copied = T.alloc_buffer((channels, width), "float32")
            mean = T.alloc_buffer((width,), "float32")
            scaling = T.alloc_buffer((width,), "float32")
            b: T.let = task // blocks
            first: T.let = task % blocks * width
            count: T.let = T.min(T.int64(width), sites - first)
            for i in range(width):
                mean[i] = T.float32(0)
                scaling[i] = T.float32(0)
            for c in range(channels):
                for i in range(count):
                    copied[c, i] = T.Cast("float32", x[b, c, first + i])
                    mean[i] += copied[c, i]
            for i in range(width):
                mean[i] = mean[i] / T.float32(channels)
            for c in range(channels):
                for i in range(count):
                    scaling[i] += (copied[c, i] - mean[i]) * (copied[c, i] - mean[i])
            for i in range(width):
                scaling[i] = T.float32(1) / T.sqrt(scaling[i] / T.float32(channels) + T.float32(eps))
            for c in range(channels):
                for i in range(count):
                    out[b, c, first + i] = T.Cast(dtype, act((copied[c, i] - mean[i]) * scaling[i] * weight[c] + bias[c]))

    return kernel
