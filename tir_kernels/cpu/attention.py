"""Attention without a matrix of all pairs (Dao et al., arXiv:2205.14135).

A task is up to QUERIES queries of one segment and one head. It walks the keys in tiles, keeping for
each query the largest logit so far, the sum of exponentials and the weighted sum of values.

Both products, queries x keys over the depth and queries x channels over the keys, are the register tile of every matrix
product here: rows are queries, lanes are keys or channels, so keys are transposed as they are copied. Queries are padded to
whole register tiles and keys to whole vectors. A query belongs to one task and its keys come in order, so the bits do not
depend on threads. Sums are float32; where the CPU multiplies pairs of bfloat16, weights are rounded to bfloat16.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters, inline
from ..spec.attention import Attention
from .batch_offsets import cut
from .caches import L1
from .guards import check_offsets, check_repeats, check_rows
from .isa import Isa, kernel_name
from .register_tile import RegisterTile, pair_of_halves
from .vector_math import LOG2_E, polynomial

QUERIES = 480  # of one task, whole blocks: what is copied of keys and values serves them all
BLOCK = 24  # queries whose logits exist at once, whole register tiles
KEYS = 128  # of one tile, whole panels; with BLOCK, logits take three eighths of the L1 cache
assert QUERIES % BLOCK == 0 and 8 * 4 * BLOCK * KEYS == 3 * L1
SQUARE = 8  # rows and columns that are transposed at once
LEAST = float(np.finfo("float32").min)
# 2^r for |r| <= 1/2, minimax in relative error but for the first coefficient: within 1.5e-7 before rounding
EXP2 = (1.0, 0.693146944, 0.240221202, 0.0555071309, 0.00967554096, 0.00132764725)


def exp2(x):
    """Vectorizable float32 2^x of a TIR expression x <= 0, relative error under 3e-7; 2^-125 below -125, NaN for NaN.

    x = n + r with |r| <= 1/2; n is added to the exponent of 2^r.
    """
    x = T.max(T.float32(-125), x)
    n = T.Cast("int32", x - T.float32(0.5))  # rounds towards zero, so x to the nearest
    power = polynomial(x - T.Cast("float32", n), EXP2)
    return T.reinterpret("float32", T.reinterpret("int32", power) + (n << 23))


def pair_of_rounded(low, high):
    """int32 of two positive float32 expressions, rounded to bfloat16; TVM does not give the bits of such a cast."""
    low, high = (T.reinterpret("uint32", value) for value in (low, high))
    low, high = (bits + T.uint32(0x7FFF) + (bits >> 16 & T.uint32(1)) for bits in (low, high))  # ties to even
    return T.reinterpret("int32", (low >> 16) | (high & T.uint32(0xFFFF0000)))


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


@inline
def fold_half(vector, half, combine):
    """The lower half of `vector`, combined with its upper half."""
    for lane in T.vectorized(half):
        vector[lane] = combine(vector[lane], vector[half + lane])


def fold(vector, lanes: int, combine):
    """Emit: vector[0] = all `lanes` elements combined, in pairs; a power of two."""
    while lanes > 1:
        lanes //= 2
        fold_half(vector, lanes, combine)


@cache
def attention(spec: Attention, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Attention`."""
    heads, depth, dtype, has_q_order, has_k_order = spec.heads, spec.depth, spec.dtype, spec.has_q_order, spec.has_k_order
    micro = RegisterTile(isa, depth, KEYS, dtype)
    rows, cols, lanes, steps = micro.tile.rows, micro.tile.cols, micro.tile.lanes, micro.steps
    pair = 2 if micro.dot else 1  # products of one step
    assert BLOCK % rows == 0 and KEYS % cols == 0 and KEYS % SQUARE == 0, "blocks and tiles of keys are whole register tiles"
    packed = micro.weight_dtype  # of the operands of both products
    last_vectors = -(-(depth % cols) // lanes)  # of the last panel of channels, where it is not a whole one
    channels = depth // cols * cols + last_vectors * lanes  # the depth in whole vectors
    key_block = max(lanes, SQUARE)
    factor = LOG2_E * (max(depth, 1) ** -0.5 if spec.scale is None else spec.scale)  # softmax in powers of two

    def q_row(q_order, position):
        """The row of q at a position, int64."""
        return T.Cast("int64", q_order[position]) if has_q_order else position

    def k_row(k_order, position):
        """The row of k and v at a position, int64."""
        return T.Cast("int64", k_order[position]) if has_k_order else position

    def step_of(x, row, h, step):
        """What a step along the depth takes of a row: a float32, or an int32 of two bfloat16."""
        if micro.dot:
            return pair_of_halves(x[row, h, 2 * step], x[row, h, 2 * step + 1])
        return T.Cast("float32", x[row, h, step])

    def last_step_of(x, row, h):
        """What the last step along an odd depth takes: never read past a row."""
        return T.Cast("int32", T.reinterpret("uint16", x[row, h, depth - 1]))

    def value_of(v, row, next_row, h, channel):
        """What a step along the keys takes of a channel, a float32 of one row or an int32 of two."""
        if micro.dot:
            return pair_of_halves(v[row, h, channel], v[next_row, h, channel])
        return T.Cast("float32", v[row, h, channel])

    @inline
    def load_queries(q, q_order, first, count, h, queries):
        """queries[i, :] = q[first + i, h, :]; the last one again up to a whole register tile"""
        for i in range((count + rows - 1) // rows * rows):
            row: T.let = q_row(q_order, first + T.min(i, count - 1))
            for step in range(depth // pair):
                queries[i, step] = step_of(q, row, h, step)
            if depth % pair > 0:
                queries[i, steps - 1] = last_step_of(q, row, h)

    @inline
    def load_keys(k, k_order, first, count, h, keys):
        """keys[0, panel, :, lane] = k[first + panel * cols + lane, h, :]; the last one again up to a whole vector"""
        for i in range((count + key_block - 1) // key_block * (key_block // SQUARE)):
            block = T.alloc_buffer((SQUARE, SQUARE), packed)  # registers
            panel: T.let = i * SQUARE // cols
            left: T.let = i * SQUARE % cols
            for j in range(depth // pair // SQUARE):
                for r in T.unroll(SQUARE):
                    for lane in T.vectorized(SQUARE):
                        block[r, lane] = step_of(
                            k, k_row(k_order, first + T.min(i * SQUARE + r, count - 1)), h, j * SQUARE + lane
                        )
                transpose(block)
                for r in T.unroll(SQUARE):
                    for lane in T.vectorized(SQUARE):
                        keys[0, panel, j * SQUARE + r, left + lane] = block[r, lane]
            for r in range(SQUARE):
                row: T.let = k_row(k_order, first + T.min(i * SQUARE + r, count - 1))
                for step in range(depth // pair // SQUARE * SQUARE, depth // pair):
                    keys[0, panel, step, left + r] = step_of(k, row, h, step)
                if depth % pair > 0:
                    keys[0, panel, steps - 1, left + r] = last_step_of(k, row, h)

    @inline
    def load_values(v, k_order, first, count, h, values):
        """values[0, panel, step, column] = v[first + step, h, panel * cols + column], or pairs; then zeros"""
        for step in range((count + pair - 1) // pair):
            row: T.let = k_row(k_order, first + step * pair)
            next_row: T.let = k_row(k_order, first + T.min(step * pair + 1, count - 1))  # its weight is next to nothing
            for panel in T.unroll(depth // cols):
                for column in range(cols):
                    values[0, panel, step, column] = value_of(v, row, next_row, h, panel * cols + column)
            for column in range(depth % cols):
                values[0, depth // cols, step, column] = value_of(v, row, next_row, h, depth // cols * cols + column)
            for column in range(depth % cols, last_vectors * lanes):
                values[0, depth // cols, step, column] = T.Cast(packed, 0)

    def logit(product, key, num_keys):
        """A logit in powers of two; a Select, as an if_then_else would become a branch for each lane."""
        return T.Select(key < num_keys, product * T.float32(factor), T.float32(LEAST))

    @inline
    def find_panel(columns, panel, queries, first, count, keys, num_keys, logits):
        """logits of `columns` keys; past the last key they are the least number"""
        for group in range(count // rows):
            acc = micro.accumulators(rows, columns)
            acc.load(lambda r, column: T.float32(0))
            micro.multiply_packed(acc, queries, first + group * rows, keys, panel, 0, steps)
            acc.store(
                lambda value, r, column: T.buffer_store(
                    logits, logit(value, panel * cols + column, num_keys), [group * rows + r, panel * cols + column]
                )
            )

    def find_logits(queries, first, count, keys, num_keys, logits):
        """Emit: logits[i, j] = factor * queries[first + i, :] . keys[:, j], of the last panel as many vectors as have keys"""
        with T.serial(0, num_keys // cols) as panel:
            find_panel(cols, panel, queries, first, count, keys, num_keys, logits)
        for columns in range(lanes, cols + 1, lanes):
            with T.If((num_keys % cols + lanes - 1) // lanes * lanes == columns), T.Then():
                find_panel(columns, num_keys // cols, queries, first, count, keys, num_keys, logits)

    @inline
    def find_largest(logits, first, count, num_keys, largest, decay):
        """largest[first + i] = largest logit so far; decay[i]: what earlier sums are to be multiplied by"""
        for i in range(count):
            most = T.alloc_buffer((lanes,), "float32")  # a register
            for lane in T.vectorized(lanes):
                most[lane] = T.float32(LEAST)
            for j in range((num_keys + lanes - 1) // lanes):
                for lane in T.vectorized(lanes):
                    most[lane] = T.max(most[lane], logits[i, j * lanes + lane])
            fold(most, lanes, T.max)
            most[0] = T.max(most[0], largest[first + i])
            decay[i] = exp2(largest[first + i] - most[0])
            largest[first + i] = most[0]

    @inline
    def find_weights(logits, first, count, num_keys, largest, decay, total, weights):
        """weights[i, :] = 2^(logits[i, :] - largest so far), which add to total[first + i]; `weights` may be `logits`"""
        for i in range(count):
            sum_ = T.alloc_buffer((lanes,), "float32")  # a register
            for lane in T.vectorized(lanes):
                sum_[lane] = T.float32(0)
            for j in range((num_keys + lanes - 1) // lanes):
                for lane in T.vectorized(lanes):
                    logits[i, j * lanes + lane] = exp2(logits[i, j * lanes + lane] - largest[first + i])
                for lane in T.vectorized(lanes):
                    sum_[lane] += logits[i, j * lanes + lane]
            fold(sum_, lanes, lambda a, b: a + b)
            total[first + i] = total[first + i] * decay[i] + sum_[0]
            if micro.dot:
                for step in range((num_keys + 1) // 2):
                    weights[i, step] = pair_of_rounded(logits[i, 2 * step], logits[i, 2 * step + 1])

    @inline
    def add_panel(columns, panel, weights, first, count, values, num_keys, decay, sums):
        """sums[first + i, :] = sums[first + i, :] * decay[i] + weights[i, :] @ values, `columns` channels"""
        for group in range(count // rows):
            row: T.let = first + group * rows
            acc = micro.accumulators(rows, columns)
            acc.load(lambda r, column: sums[row + r, panel * cols + column] * decay[group * rows + r])
            micro.multiply_packed(acc, weights, group * rows, values, panel, 0, (num_keys + pair - 1) // pair)
            acc.store(lambda value, r, column: T.buffer_store(sums, value, [row + r, panel * cols + column]))

    def add_values(*args):
        """Emit: `add_panel` for all channels."""
        if depth >= cols:
            with T.serial(0, depth // cols) as panel:
                add_panel(cols, panel, *args)
        if last_vectors:
            add_panel(last_vectors * lanes, depth // cols, *args)

    @inline
    def store(sums, total, first, count, num_keys, h, out, q_order):
        """out[first + i, h, :] = sums[i, :] / total[i]"""
        for i in range(count):
            row: T.let = q_row(q_order, first + i)
            share: T.let = T.if_then_else(num_keys > 0, T.float32(1) / total[i], T.float32(0))
            for d in range(depth):
                out[row, h, d] = T.Cast(dtype, sums[i, d] * share)

    @inline
    def attend(q, k, v, q_order, k_order, out, first, count, first_key, num_keys, h):
        queries = T.alloc_buffer((QUERIES, steps), packed)
        keys = T.alloc_buffer((1, KEYS // cols, steps, cols), packed)
        values = T.alloc_buffer((1, micro.tile.panels(depth), KEYS // pair, cols), packed)
        logits = T.alloc_buffer((BLOCK, KEYS), "float32")
        weights = T.alloc_buffer((BLOCK, KEYS // pair), packed) if micro.dot else logits
        sums = T.alloc_buffer((QUERIES, channels), "float32")
        largest = T.alloc_buffer((QUERIES,), "float32")
        total = T.alloc_buffer((QUERIES,), "float32")
        decay = T.alloc_buffer((BLOCK,), "float32")
        padded: T.let = (count + rows - 1) // rows * rows
        load_queries(q, q_order, first, count, h, queries)
        for i in range(padded):
            largest[i] = T.float32(LEAST)
            total[i] = T.float32(0)
            for channel in range(channels):
                sums[i, channel] = T.float32(0)
        for tile in range((num_keys + KEYS - 1) // KEYS):
            here: T.let = T.min(T.int64(KEYS), num_keys - tile * KEYS)
            load_keys(k, k_order, first_key + tile * KEYS, here, h, keys)
            load_values(v, k_order, first_key + tile * KEYS, here, h, values)
            for block in range((padded + BLOCK - 1) // BLOCK):
                start: T.let = block * BLOCK
                height: T.let = T.min(T.int64(BLOCK), padded - start)
                find_logits(queries, start, height, keys, here, logits)
                find_largest(logits, start, height, here, largest, decay)
                find_weights(logits, start, height, here, largest, decay, total, weights)
                add_values(weights, start, height, values, here, decay, sums)
        store(sums, total, first, count, num_keys, h, out, q_order)

    @script.prim_func(s_tir=True)
    def kernel(
        q_: T.handle,
        k_: T.handle,
        v_: T.handle,
        q_offsets_: T.handle,
        k_offsets_: T.handle,
        q_order_: T.handle,
        k_order_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("attention", dtype, isa, micro.tile)})
        nq, nk, mk, batch = T.int64(), T.int64(), T.int64(), T.int64()
        q = match_buffer(q_, (nq, heads, depth), dtype)
        k = match_buffer(k_, (nk, heads, depth), dtype)
        v = match_buffer(v_, (nk, heads, depth), dtype)
        q_offsets = match_buffer(q_offsets_, (batch,), "int32")
        k_offsets = match_buffer(k_offsets_, (batch,), "int32")
        q_order = match_buffer(q_order_, (nq,), "int32")
        k_order = match_buffer(k_order_, (mk,), "int32")
        out = match_buffer(out_, (nq, heads, depth), dtype)
        if micro.dot:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
        if has_q_order:
            check_rows("q_order", q_order, nq, nq)
            check_repeats("q_order", q_order, nq)
        if has_k_order:
            check_rows("k_order", k_order, mk, nk)
        check_offsets("q_offsets", q_offsets, batch - 1, nq)
        check_offsets("k_offsets", k_offsets, batch - 1, mk if has_k_order else nk)
        tiles = T.alloc_buffer((1,), "int64")
        tile_first = T.alloc_buffer((nq // QUERIES + batch,), "int64")
        tile_rows = T.alloc_buffer((nq // QUERIES + batch,), "int64")
        tile_batch = T.alloc_buffer((nq // QUERIES + batch,), "int64")
        cut(q_offsets, batch - 1, QUERIES, tiles, tile_first, tile_rows, tile_batch)
        for task in T.parallel(tiles[0] * heads if depth > 0 else T.int64(0)):  # without channels there is nothing to write
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
            attend(q, k, v, q_order, k_order, out, tile_first[t], tile_rows[t], first_key, num_keys, h)

    given = {"q_order": has_q_order, "k_order": has_k_order}
    return drop_parameters(kernel, *(name for name, present in given.items() if not present))
