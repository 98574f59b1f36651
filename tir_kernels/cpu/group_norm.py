"""Group normalisation of sparse tensors.

Rows are cut into chunks that start with their batch element, whatever the threads. A chunk makes two passes over rows that
stay in cache: the first finds a center near its mean, the second sums deviations from that and their squares. Chunks are then
merged in order (Chan, Golub and LeVeque 1979). Means are kept as a center and a small difference from it, so a mean much
larger than the deviations costs no accuracy. Sums are float32.
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
from .batch_offsets import cut
from .guards import check_offsets
from .isa import Isa
from .rows import each_channel

CHUNK = 256  # rows of one task


@cache
def group_norm(spec: GroupNorm, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `GroupNorm`."""
    channels, groups, dtype, eps = spec.channels, spec.groups, spec.dtype, spec.eps
    width = channels // groups
    act = EMIT[spec.activation]

    @inline
    def add(x, row, deviation, c):
        deviation[c] += T.Cast("float32", x[row, c])

    @inline
    def add_squares(x, row, center, deviation, square, c):
        deviation[c] += T.Cast("float32", x[row, c]) - center[c]
        square[c] += (T.Cast("float32", x[row, c]) - center[c]) * (T.Cast("float32", x[row, c]) - center[c])

    @inline
    def normalise(x, row, middle, factor, addend, out, c):
        out[row, c] = T.Cast(dtype, act((T.Cast("float32", x[row, c]) - middle[c]) * factor[c] + addend[c]))

    @inline
    def measure(x, first, rows, k, centers, means, squares):
        """A center, the mean less the center, and the squared deviations from the mean of every group of chunk k."""
        center = T.alloc_buffer((channels,), "float32")
        deviation = T.alloc_buffer((channels,), "float32")
        square = T.alloc_buffer((channels,), "float32")
        total = T.alloc_buffer((2,), "float32")
        count: T.let = T.Cast("float32", rows * width)
        for c in range(channels):
            deviation[c] = T.float32(0)
        for i in range(rows):
            each_channel(channels, isa.lanes, lambda c: add(x, first + i, deviation, c))
        for g in range(groups):
            total[0] = T.float32(0)
            for c in range(width):
                total[0] += deviation[g * width + c]
            for c in range(width):
                center[g * width + c] = total[0] / count
        for c in range(channels):
            deviation[c] = T.float32(0)
            square[c] = T.float32(0)
        for i in range(rows):
            each_channel(channels, isa.lanes, lambda c: add_squares(x, first + i, center, deviation, square, c))
        for g in range(groups):
            total[0] = T.float32(0)
            total[1] = T.float32(0)
            for c in range(width):
                total[0] += deviation[g * width + c]
                total[1] += square[g * width + c]
            centers[k, g] = center[g * width]
            means[k, g] = total[0] / count
            squares[k, g] = total[1] - total[0] * total[0] / count

    @inline
    def merge(chunks, chunk_rows, chunk_batch, centers, means, squares, counts, center, mean, square):
        """center, mean, square [B, groups]: the same of whole batch elements, from their chunks in order."""
        for k in range(chunks[0]):
            b: T.let = chunk_batch[k]
            before: T.let = counts[b]
            for g in range(groups):
                merge_part(
                    center, mean, square, b, g, before * width, centers[k, g], means[k, g], squares[k, g], chunk_rows[k] * width
                )
            counts[b] = before + chunk_rows[k]

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, offsets_: T.handle, weight_: T.handle, bias_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"group_norm_{dtype}"})
        n, batch = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        offsets = match_buffer(offsets_, (batch,), "int32")
        weight = match_buffer(weight_, (channels,), "float32")
        bias = match_buffer(bias_, (channels,), "float32")
        out = match_buffer(out_, (n, channels), dtype)
        chunks = T.alloc_buffer((1,), "int64")
        chunk_first = T.alloc_buffer((n // CHUNK + batch,), "int64")
        chunk_rows = T.alloc_buffer((n // CHUNK + batch,), "int64")
        chunk_batch = T.alloc_buffer((n // CHUNK + batch,), "int64")
        centers = T.alloc_buffer((n // CHUNK + batch, groups), "float32")
        means = T.alloc_buffer((n // CHUNK + batch, groups), "float32")
        squares = T.alloc_buffer((n // CHUNK + batch, groups), "float32")
        counts = T.alloc_buffer((batch,), "int64")
        center = T.alloc_buffer((batch, groups), "float32")
        mean = T.alloc_buffer((batch, groups), "float32")
        square = T.alloc_buffer((batch, groups), "float32")
        check_offsets("batch_offsets", offsets, batch - 1, n)
        cut(offsets, batch - 1, CHUNK, chunks, chunk_first, chunk_rows, chunk_batch)
        for k in T.parallel(chunks[0]):
            measure(x, chunk_first[k], chunk_rows[k], k, centers, means, squares)
        for b in range(batch):
            counts[b] = T.int64(0)
        merge(chunks, chunk_rows, chunk_batch, centers, means, squares, counts, center, mean, square)
        for k in T.parallel(chunks[0]):
            middle = T.alloc_buffer((channels,), "float32")
            factor = T.alloc_buffer((channels,), "float32")
            addend = T.alloc_buffer((channels,), "float32")
            b: T.let = chunk_batch[k]
            for g in range(groups):
                scaling: T.let = T.float32(1) / T.sqrt(square[b, g] / T.Cast("float32", counts[b] * width) + T.float32(eps))
                for c in range(width):
                    middle[g * width + c] = center[b, g]
                    factor[g * width + c] = scaling * weight[g * width + c]
                    addend[g * width + c] = bias[g * width + c] - mean[b, g] * factor[g * width + c]
            for i in range(chunk_rows[k]):
                row: T.let = chunk_first[k] + i
                each_channel(channels, isa.lanes, lambda c: normalise(x, row, middle, factor, addend, out, c))

    return kernel
