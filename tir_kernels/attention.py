"""Attention over batch segments of varying length, without a matrix of all pairs (Dao et al., arXiv:2205.14135).

    out[i, h, :] = sum over the keys j of i's segment of softmax_j(scale * q[i, h, :] . k[j, h, :]) * v[j, h, :]

A task is up to 128 queries of one segment and one head. It walks the keys in tiles, keeping for each query the maximum
so far, the sum of exponentials and the weighted sum of values. Everything is transposed: vector lanes are queries, so
that maximum and sum need no shuffles, keys and values are read as scalars in their own layout, and any depth fits. The
two products are register tiles of (keys or channels) x queries. A query belongs to one task and its keys come in order,
so the bits do not depend on threads. Sums are float32.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .activation import exp
from .batch_offsets import check_offsets, cut
from .buffers import match_buffer
from .isa import Isa, Tile, kernel_name
from .script import inline

QUERIES = 128  # of one task: what is copied of keys and values serves them all
KEYS = 96  # of one tile, a multiple of the rows of every register tile; their logits stay in the L1 cache
SQUARE = 8  # rows and columns that are transposed at once


def naive(q, k, v, q_offsets, k_offsets, scale=None):
    """Oracle, in float64. q [Nq, H, D], k, v [Nk, H, D], offsets int [B + 1] -> [Nq, H, D]."""
    out = np.zeros(q.shape)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    for b in range(len(q_offsets) - 1):
        rows, keys = slice(q_offsets[b], q_offsets[b + 1]), slice(k_offsets[b], k_offsets[b + 1])
        if k_offsets[b] < k_offsets[b + 1]:
            logits = np.einsum("ihd,jhd->hij", q[rows].astype(np.float64), k[keys].astype(np.float64)) * scale
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[rows] = np.einsum("hij,jhd->ihd", weights, v[keys].astype(np.float64))
    return out


@inline
def exchange(block, i, j, low, high):
    """Rows i and j of a block become two selections of the elements of both: `low` and `high` index (row i, row j)."""
    first: T.let = block[i, T.Ramp(0, 1, SQUARE)]
    second: T.let = block[j, T.Ramp(0, 1, SQUARE)]
    block[i, T.Ramp(0, 1, SQUARE)] = tvm.tirx.Shuffle([first, second], low)
    block[j, T.Ramp(0, 1, SQUARE)] = tvm.tirx.Shuffle([first, second], high)


def transpose(block):
    """Emit: transpose a [SQUARE, SQUARE] block in registers, exchanging ever larger squares off its diagonal."""
    width = 1
    while width < SQUARE:
        low = [SQUARE + i - width if i & width else i for i in range(SQUARE)]
        high = [SQUARE + i if i & width else i + width for i in range(SQUARE)]
        for i in range(SQUARE):
            if not i & width:
                exchange(block, i, i + width, low, high)
        width *= 2


@cache
def attention(heads: int, depth: int, isa: Isa, dtype: str = "float32", scale: float | None = None) -> tvm.tirx.PrimFunc:
    """PrimFunc (q, k, v, q_offsets, k_offsets, out).

    q, out `dtype` [Nq, H, D]; k, v `dtype` [Nk, H, D]; q_offsets, k_offsets int32 [B + 1], ascending from 0 to Nq and
    Nk, or ValueError. Queries of a segment without keys get 0.
    """
    tile = Tile.of(isa, 2 * isa.lanes)
    rows, cols, lanes, vectors = tile.rows, tile.cols, tile.lanes, tile.vectors
    panels = QUERIES // cols
    scale = depth**-0.5 if scale is None else scale

    @inline
    def load_queries(q, first, count, h, queries):
        """queries[panel, d, lane] = scale * q[first + panel * cols + lane, h, d]; past the last one, that one again"""
        for i in range((count + cols - 1) // cols * cols // SQUARE):
            block = T.alloc_buffer((SQUARE, SQUARE), "float32")  # registers
            panel: T.let = i // (cols // SQUARE)
            left: T.let = i % (cols // SQUARE) * SQUARE
            for j in range(depth // SQUARE):
                for r in T.unroll(SQUARE):
                    for lane in T.vectorized(SQUARE):
                        block[r, lane] = T.float32(scale) * T.Cast(
                            "float32", q[first + T.min(i * SQUARE + r, count - 1), h, j * SQUARE + lane]
                        )
                transpose(block)
                for r in T.unroll(SQUARE):
                    for lane in T.vectorized(SQUARE):
                        queries[panel, j * SQUARE + r, left + lane] = block[r, lane]
            for r in range(SQUARE):
                for d in range(depth // SQUARE * SQUARE, depth):
                    queries[panel, d, left + r] = T.float32(scale) * T.Cast(
                        "float32", q[first + T.min(i * SQUARE + r, count - 1), h, d]
                    )

    @inline
    def load_rows(x, first, count, h, tile_rows):
        for j in range(count):
            for d in range(depth):
                tile_rows[j, d] = T.Cast("float32", x[first + j, h, d])

    @inline
    def find_logits(queries, panel, keys, count, logits):
        """logits[j, :] = keys[j, :] . queries[panel, :, :]; the last group may end in rows that nobody reads"""
        for group in range((count + rows - 1) // rows):
            acc = T.alloc_buffer((rows, cols), "float32")  # registers
            for r in T.unroll(rows):
                for v in T.unroll(vectors):
                    for lane in T.vectorized(lanes):
                        acc[r, v * lanes + lane] = T.float32(0)
            for d in range(depth):
                for r in T.unroll(rows):
                    for v in T.unroll(vectors):
                        for lane in T.vectorized(lanes):
                            acc[r, v * lanes + lane] += keys[group * rows + r, d] * queries[panel, d, v * lanes + lane]
            for r in T.unroll(rows):
                for v in T.unroll(vectors):
                    for lane in T.vectorized(lanes):
                        logits[group * rows + r, v * lanes + lane] = acc[r, v * lanes + lane]

    @inline
    def exponentiate(logits, count, panel, top, total, decay):
        """logits -> exp(logits - maximum so far); `decay` is what earlier sums are to be multiplied by."""
        most = T.alloc_buffer((cols,), "float32")
        more = T.alloc_buffer((cols,), "float32")
        for lane in T.vectorized(cols):
            most[lane] = top[panel, lane]
        for lane in T.vectorized(cols):
            more[lane] = T.float32(0)
        for j in range(count):
            for lane in T.vectorized(cols):
                most[lane] = T.max(most[lane], logits[j, lane])
        for j in range(count):
            for lane in T.vectorized(cols):
                logits[j, lane] = exp(logits[j, lane] - most[lane])
            for lane in T.vectorized(cols):
                more[lane] += logits[j, lane]
        for lane in T.vectorized(cols):
            decay[lane] = exp(top[panel, lane] - most[lane])
        for lane in T.vectorized(cols):
            total[panel, lane] = total[panel, lane] * decay[lane] + more[lane]
        for lane in T.vectorized(cols):
            top[panel, lane] = most[lane]

    @inline
    def add_values(channels, first, weights, count, panel, values, decay, sums):
        """sums[panel, d, :] = sums * decay + values[:, d] . weights, for `channels` d from `first`"""
        acc = T.alloc_buffer((channels, cols), "float32")  # registers
        for r in T.unroll(channels):
            for v in T.unroll(vectors):
                for lane in T.vectorized(lanes):
                    acc[r, v * lanes + lane] = sums[panel, first + r, v * lanes + lane] * decay[v * lanes + lane]
        for j in range(count):
            for r in T.unroll(channels):
                for v in T.unroll(vectors):
                    for lane in T.vectorized(lanes):
                        acc[r, v * lanes + lane] += values[j, first + r] * weights[j, v * lanes + lane]
        for r in T.unroll(channels):
            for v in T.unroll(vectors):
                for lane in T.vectorized(lanes):
                    sums[panel, first + r, v * lanes + lane] = acc[r, v * lanes + lane]

    @inline
    def store_sums(sums, total, first, count, num_keys, h, out):
        """out[first + panel * cols + lane, h, d] = sums[panel, d, lane] / total[panel, lane]"""
        for i in range((count + SQUARE - 1) // SQUARE):
            block = T.alloc_buffer((SQUARE, SQUARE), "float32")  # registers
            factor = T.alloc_buffer((SQUARE,), "float32")
            panel: T.let = i // (cols // SQUARE)
            left: T.let = i % (cols // SQUARE) * SQUARE
            for lane in T.vectorized(SQUARE):
                factor[lane] = T.if_then_else(num_keys > 0, T.float32(1) / total[panel, left + lane], T.float32(0))
            for j in range(depth // SQUARE):
                for r in T.unroll(SQUARE):
                    for lane in T.vectorized(SQUARE):
                        block[r, lane] = sums[panel, j * SQUARE + r, left + lane] * factor[lane]
                transpose(block)
                for r in T.unroll(SQUARE):
                    if i * SQUARE + r < count:
                        for lane in T.vectorized(SQUARE):
                            out[first + i * SQUARE + r, h, j * SQUARE + lane] = T.Cast(dtype, block[r, lane])
            for r in range(T.min(T.int64(SQUARE), count - i * SQUARE)):
                for d in range(depth // SQUARE * SQUARE, depth):
                    out[first + i * SQUARE + r, h, d] = T.Cast(dtype, sums[panel, d, left + r] * factor[r])

    @inline
    def attend(q, k, v, out, first, count, first_key, num_keys, h):
        queries = T.alloc_buffer((panels, depth, cols), "float32")
        sums = T.alloc_buffer((panels, depth, cols), "float32")
        keys = T.alloc_buffer((KEYS, depth), "float32")
        values = T.alloc_buffer((KEYS, depth), "float32")
        logits = T.alloc_buffer((KEYS, cols), "float32")
        top = T.alloc_buffer((panels, cols), "float32")
        total = T.alloc_buffer((panels, cols), "float32")
        decay = T.alloc_buffer((cols,), "float32")
        load_queries(q, first, count, h, queries)
        for panel in range((count + cols - 1) // cols):
            for lane in T.vectorized(cols):
                top[panel, lane] = T.min_value("float32")
            for lane in T.vectorized(cols):
                total[panel, lane] = T.float32(0)
            for d in range(depth):
                for lane in T.vectorized(cols):
                    sums[panel, d, lane] = T.float32(0)
        for step in range((num_keys + KEYS - 1) // KEYS):
            here: T.let = T.min(T.int64(KEYS), num_keys - step * KEYS)
            load_rows(k, first_key + step * KEYS, here, h, keys)
            load_rows(v, first_key + step * KEYS, here, h, values)
            for panel in range((count + cols - 1) // cols):
                find_logits(queries, panel, keys, here, logits)
                exponentiate(logits, here, panel, top, total, decay)
                for group in range(depth // rows):
                    add_values(rows, group * rows, logits, here, panel, values, decay, sums)
                if depth % rows > 0:
                    add_values(depth % rows, depth // rows * rows, logits, here, panel, values, decay, sums)
        store_sums(sums, total, first, count, num_keys, h, out)

    @T.prim_func(s_tir=True)
    def kernel(q_: T.handle, k_: T.handle, v_: T.handle, q_offsets_: T.handle, k_offsets_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("attention", dtype, isa, tile)})
        nq, nk, batch = T.int64(), T.int64(), T.int64()
        q = match_buffer(q_, (nq, heads, depth), dtype)
        k = match_buffer(k_, (nk, heads, depth), dtype)
        v = match_buffer(v_, (nk, heads, depth), dtype)
        q_offsets = match_buffer(q_offsets_, (batch,), "int32")
        k_offsets = match_buffer(k_offsets_, (batch,), "int32")
        out = match_buffer(out_, (nq, heads, depth), dtype)
        tiles = T.alloc_buffer((1,), "int64")
        tile_first = T.alloc_buffer((nq // QUERIES + batch,), "int64")
        tile_rows = T.alloc_buffer((nq // QUERIES + batch,), "int64")
        tile_batch = T.alloc_buffer((nq // QUERIES + batch,), "int64")
        check_offsets("q_offsets", q_offsets, batch - 1, nq)
        check_offsets("k_offsets", k_offsets, batch - 1, nk)
        cut(q_offsets, batch - 1, QUERIES, tiles, tile_first, tile_rows, tile_batch)
        for task in T.parallel(tiles[0] * heads):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring tasks cost alike: deal them out
            # all tiles of one segment and head, then the next head: its keys and values stay in cache
            b: T.let = tile_batch[task // heads]
            segment_first: T.let = T.Cast("int64", q_offsets[b])
            segment_tiles: T.let = (T.Cast("int64", q_offsets[b + 1]) - segment_first + (QUERIES - 1)) // QUERIES
            start: T.let = task // heads - (tile_first[task // heads] - segment_first) // QUERIES
            h: T.let = (task - start * heads) // segment_tiles
            t: T.let = start + (task - start * heads) % segment_tiles
            first_key: T.let = T.Cast("int64", k_offsets[b])
            num_keys: T.let = T.Cast("int64", k_offsets[b + 1]) - first_key
            attend(q, k, v, out, tile_first[t], tile_rows[t], first_key, num_keys, h)

    return kernel
