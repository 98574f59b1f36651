"""Layer normalisation over the channels of dense tensors: a block takes neighbouring sites, a lane each.

Its warps share the channels, of which each takes every eighth; their sums are added in order. Mean and variance are taken in
two passes, over elements that the third reads again from cache.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..spec.channel_layer_norm import ChannelLayerNorm
from ..vector_math import EMIT
from .gpu import WARP, Gpu, kernel_name
from .launch import THREADS, blocks_for
from .reductions import WARPS


@cache
def channel_layer_norm(spec: ChannelLayerNorm, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `ChannelLayerNorm`."""
    channels, rank, dtype, eps = spec.channels, spec.rank, spec.dtype, spec.eps
    count = max(channels, 1)
    act = EMIT[spec.activation]
    batch, *spatial = (tvm.tirx.Var(name, "int64") for name in ("b", *(f"n{axis}" for axis in range(rank - 2))))
    sites = tvm.tirx.IntImm("int64", 1)
    for dim in spatial:
        sites = sites * dim

    @inline
    def add_warps(total, shared, warp, lane):
        """total[0] = that of all warps for a site, in order"""
        T.tvm_storage_sync("shared")
        shared[warp, lane] = total[0]
        T.tvm_storage_sync("shared")
        total[0] = T.float32(0)
        for other in T.unroll(WARPS):
            total[0] += shared[other, lane]

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("channel_layer_norm", dtype)})
        x_nd = match_buffer(x_, (batch, channels, *spatial), dtype)
        weight = match_buffer(weight_, (channels,), "float32")
        bias = match_buffer(bias_, (channels,), "float32")
        out_nd = match_buffer(out_, (batch, channels, *spatial), dtype)
        x = T.decl_buffer((batch, channels, sites), dtype, data=x_nd.data)
        out = T.decl_buffer((batch, channels, sites), dtype, data=out_nd.data)
        blocks: T.let = blocks_for(sites, WARP)  # of a batch element
        with T.launch_thread("blockIdx.x", blocks_for(batch * blocks, 1)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            shared = T.alloc_shared((WARPS, WARP), "float32")
            total = T.alloc_local((1,), "float32")
            mean = T.alloc_local((1,), "float32")
            warp: T.let = thread // WARP
            lane: T.let = thread % WARP
            b: T.let = T.Cast("int64", block) // blocks
            site: T.let = T.Cast("int64", block) % blocks * WARP + lane
            turns: T.let = T.if_then_else(
                T.And(T.Cast("int64", block) < batch * blocks, site < sites), (channels - warp + WARPS - 1) // WARPS, 0
            )
            total[0] = T.float32(0)
            for i in range(turns):
                total[0] += T.Cast("float32", x[b, i * WARPS + warp, site])
            add_warps(total, shared, warp, lane)
            mean[0] = total[0] / T.float32(count)
            total[0] = T.float32(0)
            for i in range(turns):
                deviation: T.let = T.Cast("float32", x[b, i * WARPS + warp, site]) - mean[0]
                total[0] += deviation * deviation
            add_warps(total, shared, warp, lane)
            total[0] = T.float32(1) / T.sqrt(total[0] / T.float32(count) + T.float32(eps))
            for i in range(turns):
                c: T.let = i * WARPS + warp
                normal: T.let = (T.Cast("float32", x[b, c, site]) - mean[0]) * total[0]
                out[b, c, site] = T.Cast(dtype, act(normal * weight[c] + bias[c]))

    return kernel
