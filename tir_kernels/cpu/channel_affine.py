"""A factor and a summand for every channel."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.channel_affine import ChannelAffine
from ..vector_math import EMIT
from .isa import Isa

CHUNK = 8192  # elements of one task, about


@cache
def channel_affine(spec: ChannelAffine, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `ChannelAffine`. Vectors lie along the channels of a row, or along the sites of one channel."""
    return _of_rows(spec) if spec.rank == 2 else _of_sites(spec)


def _of_rows(spec: ChannelAffine) -> tvm.tirx.PrimFunc:
    channels, dtype = spec.channels, spec.dtype
    act = EMIT[spec.activation]
    rows = max(1, CHUNK // max(channels, 1))  # of one task

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, scale_: T.handle, shift_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"channel_affine_{dtype}"})
        n = T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        scale = match_buffer(scale_, (channels,), "float32")
        shift = match_buffer(shift_, (channels,), "float32")
        out = match_buffer(out_, (n, channels), dtype)
        for chunk in T.parallel((n + rows - 1) // rows):
            for i in range(T.min(T.int64(rows), n - chunk * rows)):
                for c in range(channels):
                    out[chunk * rows + i, c] = T.Cast(
                        dtype, act(T.Cast("float32", x[chunk * rows + i, c]) * scale[c] + shift[c])
                    )

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
        T.func_attr({"tirx.noalias": True, "global_symbol": f"channel_affine_{dtype}"})
        x_nd = match_buffer(x_, (batch, channels, *spatial), dtype)
        scale = match_buffer(scale_, (channels,), "float32")
        shift = match_buffer(shift_, (channels,), "float32")
        out_nd = match_buffer(out_, (batch, channels, *spatial), dtype)
        x = T.decl_buffer((batch, channels, sites), dtype, data=x_nd.data)
        out = T.decl_buffer((batch, channels, sites), dtype, data=out_nd.data)
        blocks: T.let = (sites + CHUNK - 1) // CHUNK
        for task in T.parallel(batch * blocks * channels):
            b: T.let = task // (blocks * channels)
            c: T.let = task // blocks % channels
            first: T.let = task % blocks * CHUNK
            for i in range(T.min(T.int64(CHUNK), sites - first)):
                out[b, c, first + i] = T.Cast(dtype, act(T.Cast("float32", x[b, c, first + i]) * scale[c] + shift[c]))

    return kernel
