"""Group normalisation of dense tensors: the elements of a group, which lie together, are cut into chunks.

A block measures a chunk, as in `group_norm`; a thread for each batch element and group merges its chunks in order.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..moments import merge_part
from ..script import inline
from ..spec.dense_group_norm import DenseGroupNorm
from ..vector_math import EMIT
from .gpu import Gpu, kernel_name
from .group_norm import measure_part
from .launch import THREADS, blocks_for, for_each

CHUNK = 8192  # elements that one block measures
SITES = 2048  # of one channel that one block normalises


@cache
def dense_group_norm(spec: DenseGroupNorm, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `DenseGroupNorm`."""
    channels, groups, rank, dtype, eps = spec.channels, spec.groups, spec.rank, spec.dtype, spec.eps
    width = channels // groups
    act = EMIT[spec.activation]
    batch, *spatial = (tvm.tirx.Var(name, "int64") for name in ("b", *(f"n{axis}" for axis in range(rank - 2))))
    sites = tvm.tirx.IntImm("int64", 1)
    for dim in spatial:
        sites = sites * dim

    @inline
    def merge(centers, means, squares, center, mean, scaling, group, chunks):
        """center, mean [B * groups] of a whole group, and 1 / sqrt(variance + eps), from its chunks in order."""
        middle = T.alloc_local((1, 1), "float32")
        off = T.alloc_local((1, 1), "float32")
        square = T.alloc_local((1, 1), "float32")
        middle[0, 0] = T.float32(0)
        off[0, 0] = T.float32(0)
        square[0, 0] = T.float32(0)
        for k in range((sites * width + CHUNK - 1) // CHUNK):
            at: T.let = group * chunks + k
            count: T.let = T.min(T.int64(CHUNK), sites * width - k * CHUNK)
            merge_part(middle, off, square, 0, 0, k * CHUNK, centers[at], means[at], squares[at], count)
        center[group] = middle[0, 0]
        mean[group] = off[0, 0]
        scaling[group] = T.float32(1) / T.sqrt(square[0, 0] / T.Cast("float32", sites * width) + T.float32(eps))

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("dense_group_norm", dtype)})
        x_nd = match_buffer(x_, (batch, channels, *spatial), dtype)
        weight = match_buffer(weight_, (channels,), "float32")
        bias = match_buffer(bias_, (channels,), "float32")
        out_nd = match_buffer(out_, (batch, channels, *spatial), dtype)
        x_group = T.decl_buffer((batch * groups, sites * width), dtype, data=x_nd.data)
        x = T.decl_buffer((batch * channels, sites), dtype, data=x_nd.data)
        out = T.decl_buffer((batch * channels, sites), dtype, data=out_nd.data)
        chunks: T.let = blocks_for(sites * width, CHUNK)  # of a group
        blocks: T.let = blocks_for(sites, SITES)  # of a channel
        centers = T.alloc_buffer((batch * groups * blocks_for(sites * width, CHUNK),), "float32")
        means = T.alloc_buffer((batch * groups * blocks_for(sites * width, CHUNK),), "float32")
        squares = T.alloc_buffer((batch * groups * blocks_for(sites * width, CHUNK),), "float32")
        center = T.alloc_buffer((batch * groups,), "float32")
        mean = T.alloc_buffer((batch * groups,), "float32")
        scaling = T.alloc_buffer((batch * groups,), "float32")
        with T.launch_thread("blockIdx.x", blocks_for(batch * groups * chunks, 1)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            at: T.let = T.Cast("int64", block)
            first: T.let = at % chunks * CHUNK
            measure_part(
                lambda i: T.Cast("float32", x_group[at // chunks, first + i]),
                T.if_then_else(
                    at < batch * groups * chunks, T.Cast("int32", T.min(T.int64(CHUNK), sites * width - first)), T.int32(0)
                ),
                *(centers, means, squares, at, thread),
            )
        for_each(batch * groups, lambda group: merge(centers, means, squares, center, mean, scaling, group, chunks))
        with T.launch_thread("blockIdx.x", blocks_for(batch * channels * blocks, 1)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            factor = T.alloc_local((1,), "float32")
            addend = T.alloc_local((1,), "float32")
            middle = T.alloc_local((1,), "float32")
            if T.Cast("int64", block) < batch * channels * blocks:
                channel: T.let = T.Cast("int64", block) // blocks  # of all batch elements
                first: T.let = T.Cast("int64", block) % blocks * SITES
                c: T.let = channel % channels
                middle[0] = center[channel // width]
                factor[0] = weight[c] * scaling[channel // width]
                addend[0] = bias[c] - mean[channel // width] * factor[0]
                for turn in range(SITES // THREADS):
                    site: T.let = first + turn * THREADS + thread
                    if site < sites:
                        out[channel, site] = T.Cast(
                            dtype, act((T.Cast("float32", x[channel, site]) - middle[0]) * factor[0] + addend[0])
                        )

    return kernel
