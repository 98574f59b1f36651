"""Group normalisation of sparse tensors.

Rows are cut into chunks that start with their batch element. A block measures one group of a chunk in two passes: the first
finds a center near its mean, the second sums deviations from that and their squares. A thread for each batch element and group
merges its chunks in order.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..moments import merge_part
from ..script import inline
from ..spec.group_norm import GroupNorm
from ..vector_math import EMIT
from .gpu import WARP, Gpu, kernel_name
from .guards import match_status, reporting
from .launch import THREADS, for_each
from .reductions import WARPS, add, each_of_lane, over_block
from .segments import cut_segments

CHUNK = 256  # rows of one block


@inline
def measure_part(value, count, centers, means, squares, place, thread):
    """A center, the mean less the center, and the squared deviations from the mean of the `count` values of a block.

    value(i), float32, is evaluated for 0 <= i < count, an int32; of none nothing is written.
    """
    sums = T.alloc_local((2,), "float32")
    shared = T.alloc_shared((WARPS,), "float32")
    center = T.alloc_local((1,), "float32")
    elements: T.let = T.Cast("float32", count)
    sums[0] = T.float32(0)
    for turn in range((count + THREADS - 1) // THREADS):
        if turn * THREADS + thread < count:
            sums[0] += value(turn * THREADS + thread)
    over_block(sums, 0, add, shared, thread)
    center[0] = sums[0] / elements
    sums[0] = T.float32(0)
    sums[1] = T.float32(0)
    for turn in range((count + THREADS - 1) // THREADS):
        if turn * THREADS + thread < count:
            deviation: T.let = value(turn * THREADS + thread) - center[0]
            sums[0] += deviation
            sums[1] += deviation * deviation
    over_block(sums, 0, add, shared, thread)
    over_block(sums, 1, add, shared, thread)
    if T.And(thread == 0, count > 0):
        centers[place] = center[0]
        means[place] = sums[0] / elements
        squares[place] = sums[1] - sums[0] * sums[0] / elements


@cache
def group_norm(spec: GroupNorm, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `GroupNorm`."""
    channels, groups, dtype, eps = spec.channels, spec.groups, spec.dtype, spec.eps
    width = channels // groups
    act = EMIT[spec.activation]

    def chunks_of(offsets, b):
        return (offsets[b + 1] - offsets[b] + (CHUNK - 1)) // CHUNK

    @inline
    def list_chunk(offsets, chunks, k, b, i):
        chunks[k, 0] = b
        chunks[k, 1] = offsets[b] + i * CHUNK
        chunks[k, 2] = T.min(offsets[b + 1] - offsets[b] - i * CHUNK, CHUNK)

    @inline
    def measure(x, first_chunk, segments, chunks, centers, means, squares, block, thread):
        k: T.let = T.Cast("int32", block // groups)
        g: T.let = T.Cast("int32", block % groups)
        of = T.alloc_local((2,), "int32")  # first row, rows
        of[0] = 0
        of[1] = 0
        if k < first_chunk[segments]:
            of[0] = chunks[k, 1]
            of[1] = chunks[k, 2]
        measure_part(
            lambda i: T.Cast("float32", x[T.Cast("int64", of[0] + i // width), g * width + i % width]),
            of[1] * width,
            *(centers, means, squares, T.Cast("int64", k) * groups + g, thread),
        )

    @inline
    def merge(first_chunk, segments, chunks, centers, means, squares, center, mean, scaling, b, g):
        middle = T.alloc_local((1, 1), "float32")
        off = T.alloc_local((1, 1), "float32")
        square = T.alloc_local((1, 1), "float32")
        before = T.alloc_local((1,), "int64")
        before[0] = T.int64(0)
        square[0, 0] = T.float32(0)
        # Where offsets were refused there are no chunks.
        for i in range(T.if_then_else(first_chunk[segments] > 0, first_chunk[b + 1] - first_chunk[b], 0)):
            k: T.let = T.Cast("int64", first_chunk[b] + i)
            count: T.let = T.Cast("int64", chunks[k, 2]) * width
            at: T.let = k * groups + g
            merge_part(middle, off, square, 0, 0, before[0], centers[at], means[at], squares[at], count)
            before[0] += count
        if before[0] > 0:
            center[b, g] = middle[0, 0]
            mean[b, g] = off[0, 0]
            scaling[b, g] = T.float32(1) / T.sqrt(square[0, 0] / T.Cast("float32", before[0]) + T.float32(eps))

    @inline
    def normalise(x, weight, bias, chunks, center, mean, scaling, out, k, warp, c):
        """One channel of a chunk, of which the block's warps take rows in turn."""
        b: T.let = chunks[k, 0]
        middle = T.alloc_local((1,), "float32")
        factor = T.alloc_local((1,), "float32")
        addend = T.alloc_local((1,), "float32")
        middle[0] = center[b, c // width]
        factor[0] = scaling[b, c // width] * weight[c]
        addend[0] = bias[c] - mean[b, c // width] * factor[0]
        for turn in range((chunks[k, 2] - warp + WARPS - 1) // WARPS):
            row: T.let = T.Cast("int64", chunks[k, 1] + turn * WARPS + warp)
            out[row, c] = T.Cast(dtype, act((T.Cast("float32", x[row, c]) - middle[0]) * factor[0] + addend[0]))

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, offsets_: T.handle, weight_: T.handle, bias_: T.handle, status_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("group_norm", dtype)})
        n, batch = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        offsets = match_buffer(offsets_, (batch,), "int32")
        weight = match_buffer(weight_, (channels,), "float32")
        bias = match_buffer(bias_, (channels,), "float32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (n, channels), dtype)
        most: T.let = n // CHUNK + batch  # chunks
        first_chunk = T.alloc_buffer((batch,), "int32")
        chunks = T.alloc_buffer((n // CHUNK + batch, 3), "int32")  # batch element, first row, rows
        centers = T.alloc_buffer(((n // CHUNK + batch) * groups,), "float32")
        means = T.alloc_buffer(((n // CHUNK + batch) * groups,), "float32")
        squares = T.alloc_buffer(((n // CHUNK + batch) * groups,), "float32")
        center = T.alloc_buffer((batch, groups), "float32")
        mean = T.alloc_buffer((batch, groups), "float32")
        scaling = T.alloc_buffer((batch, groups), "float32")  # 1 / sqrt(variance + eps)
        segments: T.let = T.Cast("int32", batch - 1)
        cut_segments(
            status,
            [("batch_offsets", offsets, n)],
            segments,
            lambda b: chunks_of(offsets, b),
            first_chunk,
            lambda k, b, i: list_chunk(offsets, chunks, k, b, i),
        )
        with T.launch_thread("blockIdx.x", most * groups) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            measure(x, first_chunk, segments, chunks, centers, means, squares, block, thread)
        for_each(
            (batch - 1) * groups,
            lambda task: merge(
                *(first_chunk, segments, chunks, centers, means, squares, center, mean, scaling),
                *(task // groups, task % groups),
            ),
        )
        with T.launch_thread("blockIdx.x", most) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            k: T.let = T.Cast("int32", block)
            if k < first_chunk[segments]:
                each_of_lane(
                    channels,
                    thread % WARP,
                    lambda step, c: normalise(x, weight, bias, chunks, center, mean, scaling, out, k, thread // WARP, c),
                    kept=False,
                )

    return reporting(kernel)
