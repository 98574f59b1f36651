"""A factor and a summand for every channel: a warp a row, or a block for some sites of one channel."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..spec.channel_affine import ChannelAffine
from ..vector_math import EMIT
from .gpu import WARP, Gpu, kernel_name
from .launch import THREADS, blocks_for
from .reductions import WARPS, each_of_lane

SITES = 2048  # of one channel that one block takes


@cache
def channel_affine(spec: ChannelAffine, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `ChannelAffine`."""
    return _of_rows(spec) if spec.rank == 2 else _of_sites(spec)


def _of_rows(spec: ChannelAffine) -> tvm.tirx.PrimFunc:
    channels, dtype = spec.channels, spec.dtype
    act = EMIT[spec.activation]

    @inline
    def store(x, scale, shift, out, row, c):
        out[row, c] = T.Cast(dtype, act(T.Cast("float32", x[row, c]) * scale[c] + shift[c]))

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, scale_: T.handle, shift_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("channel_affine", dtype)})
        n = T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        scale = match_buffer(scale_, (channels,), "float32")
        shift = match_buffer(shift_, (channels,), "float32")
        out = match_buffer(out_, (n, channels), dtype)
        with T.launch_thread("blockIdx.x", blocks_for(n, WARPS)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            row: T.let = T.Cast("int64", block) * WARPS + T.Cast("int64", thread // WARP)
            if row < n:
                each_of_lane(channels, thread % WARP, lambda step, c: store(x, scale, shift, out, row, c), kept=False)

    return kernel


def _of_sites(spec: ChannelAffine) -> tvm.tirx.PrimFunc:
    channels, dtype = spec.channels, spec.dtype
    act = EMIT[spec.activation]
    batch, *spatial = (tvm.tirx.Var(name, "int64") for name in ("b", *(f"n{axis}" for axis in range(spec.rank - 2))))
    sites = tvm.tirx.IntImm("int64", 1)
    for dim in spatial:
        sites = sites * dim

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, scale_: T.handle, shift_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("channel_affine", dtype)})
        x_nd = match_buffer(x_, (batch, channels, *spatial), dtype)
        scale = match_buffer(scale_, (channels,), "float32")
        shift = match_buffer(shift_, (channels,), "float32")
        out_nd = match_buffer(out_, (batch, channels, *spatial), dtype)
        x = T.decl_buffer((batch * channels, sites), dtype, data=x_nd.data)
        out = T.decl_buffer((batch * channels, sites), dtype, data=out_nd.data)
        blocks: T.let = blocks_for(sites, SITES)  # of a channel
        with T.launch_thread("blockIdx.x", blocks_for(batch * channels * blocks, 1)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            if T.Cast("int64", block) < batch * channels * blocks:
                channel: T.let = T.Cast("int64", block) // blocks  # of all batch elements
                first: T.let = T.Cast("int64", block) % blocks * SITES
                c: T.let = channel % channels
                for turn in range(SITES // THREADS):
                    site: T.let = first + turn * THREADS + thread
                    if site < sites:
                        out[channel, site] = T.Cast(dtype, act(T.Cast("float32", x[channel, site]) * scale[c] + shift[c]))

    return kernel
