"""Group normalisation of dense tensors.

The sites of every channel are cut into blocks of one size whatever the threads: a single image in few groups still makes many
tasks. A block makes two passes over elements that stay in cache and is merged with the others in order, as in `group_norm`.
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
from .isa import Isa
from .rows import row_sum

CHUNK = 4096  # elements of one task


@cache
def dense_group_norm(spec: DenseGroupNorm, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `DenseGroupNorm`."""
    channels, groups, rank, dtype, eps = spec.channels, spec.groups, spec.rank, spec.dtype, spec.eps
    width = channels // groups
    act = EMIT[spec.activation]
    batch, *spatial = (tvm.tirx.Var(name, "int64") for name in ("b", *(f"n{axis}" for axis in range(rank - 2))))
    sites = tvm.tirx.IntImm("int64", 1)
    for dim in spatial:
        sites = sites * dim

    @inline
    def measure(x, b, c, first, count, k, centers, means, squares):
        """A center, the mean less the center, and the squared deviations from the mean of block k of a channel."""
        total = T.alloc_buffer((1,), "float32")
        row_sum(total, count, lambda i: T.Cast("float32", x[b, c, first + i]))
        center: T.let = total[0] / T.Cast("float32", count)
        row_sum(total, count, lambda i: T.Cast("float32", x[b, c, first + i]) - center)
        deviation: T.let = total[0]
        row_sum(
            total,
            count,
            lambda i: (T.Cast("float32", x[b, c, first + i]) - center) * (T.Cast("float32", x[b, c, first + i]) - center),
        )
        centers[b, c, k] = center
        means[b, c, k] = deviation / T.Cast("float32", count)
        squares[b, c, k] = total[0] - deviation * deviation / T.Cast("float32", count)

    @inline
    def merge(b, g, blocks, centers, means, squares, center, mean, square):
        """center, mean, square [B, groups]: the same of a whole group, from its blocks in order."""
        for c, k in T.grid(width, blocks):
            merge_part(
                *(center, mean, square, b, g),
                c * sites + k * CHUNK,
                *(centers[b, g * width + c, k], means[b, g * width + c, k], squares[b, g * width + c, k]),
                T.min(T.int64(CHUNK), sites - k * CHUNK),
            )

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"dense_group_norm_{dtype}"})
        x_nd = match_buffer(x_, (batch, channels, *spatial), dtype)
        weight = match_buffer(weight_, (channels,), "float32")
        bias = match_buffer(bias_, (channels,), "float32")
        out_nd = match_buffer(out_, (batch, channels, *spatial), dtype)
        x = T.decl_buffer((batch, channels, sites), dtype, data=x_nd.data)
        out = T.decl_buffer((batch, channels, sites), dtype, data=out_nd.data)
        blocks: T.let = (sites + CHUNK - 1) // CHUNK
        centers = T.alloc_buffer((batch, channels, blocks), "float32")
        means = T.alloc_buffer((batch, channels, blocks), "float32")
        squares = T.alloc_buffer((batch, channels, blocks), "float32")
        center = T.alloc_buffer((batch, groups), "float32")
        mean = T.alloc_buffer((batch, groups), "float32")
        square = T.alloc_buffer((batch, groups), "float32")
        for task in T.parallel(batch * channels * blocks):
            b: T.let = task // (channels * blocks)
            c: T.let = task // blocks % channels
            k: T.let = task % blocks
            measure(x, b, c, k * CHUNK, T.min(T.int64(CHUNK), sites - k * CHUNK), k, centers, means, squares)
        for task in T.parallel(batch * groups):
            merge(task // groups, task % groups, blocks, centers, means, squares, center, mean, square)
        for task in T.parallel(batch * channels * blocks):
            b: T.let = task // (channels * blocks)
            c: T.let = task // blocks % channels
            first: T.let = task % blocks * CHUNK
            g: T.let = c // width
            variance: T.let = square[b, g] / T.Cast("float32", sites * width)
            factor: T.let = weight[c] / T.sqrt(variance + T.float32(eps))
            addend: T.let = bias[c] - mean[b, g] * factor
            middle: T.let = center[b, g]
            for i in range(T.min(T.int64(CHUNK), sites - first)):
                out[b, c, first + i] = T.Cast(dtype, act((T.Cast("float32", x[b, c, first + i]) - middle) * factor + addend))

    return kernel
