"""Attention without a matrix of all pairs (Dao et al., arXiv:2205.14135).

A task is up to QUERIES queries of one segment and one head. It walks the keys in tiles, keeping as the state of each query a
level near the largest logit so far, the sum of exponentials above it, a lane each, and the weighted sum of values. The level
rises, and the sums are rescaled, only where a logit exceeds it by a factor of 2^8: of most tiles nothing is rescaled.

Both products, queries x keys over the depth and queries x channels over the keys, are the register tile of every matrix
product here: rows are queries, lanes are keys or channels, so keys are transposed as they are copied. Queries are padded to
whole register tiles and keys to whole vectors. Where several tasks read the same keys, they are packed once for all.

The keys of a segment are cut into parts, by their number and the depth alone. Each part gives a state of its own, and these are
merged in order: by the task that walks them or, where there are few tasks, by a second loop, after a task for each part. So
bits depend neither on threads nor on other queries and segments. Sums are float32; where the CPU multiplies pairs of bfloat16,
weights are rounded to bfloat16.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters, inline
from ..spec.attention import Attention
from ..vector_math import LOG2_E, ROUND, bind, polynomial
from .caches import L1, LINE, prefetch
from .guards import check_offsets, check_repeats, check_rows
from .isa import Isa, kernel_name
from .register_tile import RegisterTile, pair_of_halves

QUERIES = 480  # of one task, whole blocks: what is copied of keys and values serves them all
BLOCK = 24  # queries whose logits exist at once, whole register tiles
KEYS = 128  # of one tile, whole panels; with BLOCK, logits take three eighths of the L1 cache
assert QUERIES % BLOCK == 0 and 8 * 4 * BLOCK * KEYS == 3 * L1
PART = 1024  # keys of a part, of large depths half as many; the last one has up to KEYS more
FEW = 64  # tasks, at most, that are divided by parts of keys ...
FEW_QUERIES = 4  # ... and queries, in parts of keys: states of more take many times the memory of keys and values
SQUARE = 8  # rows and columns that are transposed at once
LEAST = float(np.finfo("float32").min)
# 2^r for |r| <= 1/2, minimax in relative error but for the first coefficient: within 1.5e-7 before rounding
EXP2 = (1.0, 0.693146944, 0.240221202, 0.0555071309, 0.00967554096, 0.00132764725)
EXP2_SHORT = (0.999928057, 0.693260968, 0.242611155, 0.0551718324)  # within 7.5e-5, a 26th of what bfloat16 rounds

# TIR has no name for the instruction. [low, high] float32 -> int32 of two neighbours each, rounded to nearest even.
PACK_NATIVE = """
declare <{m} x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.{bits}(<{n} x float>, <{n} x float>) #0
define <{n} x i32> @pack_bf16_pairs(<{n} x float> %low, <{n} x float> %high) #1 {{
  %halves = call <{m} x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.{bits}(<{n} x float> %high, <{n} x float> %low)
  %pairs = bitcast <{m} x bfloat> %halves to <{n} x i32>
  ret <{n} x i32> %pairs
}}
attributes #0 = {{ nounwind willreturn memory(none) }}
attributes #1 = {{ alwaysinline nounwind willreturn memory(none) }}
"""
# The same function without the instruction: NaN stays NaN, and what is below the least normal number is zero.
PACK_EMULATED = """
define <{n} x i32> @pack_bf16_pairs(<{n} x float> %low, <{n} x float> %high) #1 {{
  %x = shufflevector <{n} x float> %low, <{n} x float> %high, <{m} x i32> <{order}>
  %bits = bitcast <{m} x float> %x to <{m} x i32>
  %shifted = lshr <{m} x i32> %bits, splat (i32 16)
  %odd = and <{m} x i32> %shifted, splat (i32 1)
  %half = add <{m} x i32> %odd, splat (i32 32767)
  %rounded = add <{m} x i32> %bits, %half
  %quiet = or <{m} x i32> %bits, splat (i32 4194304)
  %is_nan = fcmp uno <{m} x float> %x, zeroinitializer
  %kept = select <{m} x i1> %is_nan, <{m} x i32> %quiet, <{m} x i32> %rounded
  %exponent = and <{m} x i32> %bits, splat (i32 2139095040)
  %is_small = icmp eq <{m} x i32> %exponent, zeroinitializer
  %sign = and <{m} x i32> %bits, splat (i32 -2147483648)
  %result = select <{m} x i1> %is_small, <{m} x i32> %sign, <{m} x i32> %kept
  %upper = lshr <{m} x i32> %result, splat (i32 16)
  %halves = trunc <{m} x i32> %upper to <{m} x i16>
  %pairs = bitcast <{m} x i16> %halves to <{n} x i32>
  ret <{n} x i32> %pairs
}}
attributes #1 = {{ alwaysinline nounwind willreturn memory(none) }}
"""


def pack_ir(isa: Isa) -> str:
    """LLVM IR of `pack_bf16_pairs`."""
    order = ", ".join(f"i32 {i}" for i in range(2 * isa.lanes))
    return (PACK_EMULATED if isa.emulate_dot else PACK_NATIVE).format(
        n=isa.lanes, m=2 * isa.lanes, bits=32 * isa.lanes, order=order
    )


def exp2(x, factor: float = 1.0, coefficients=EXP2):
    """Vectorizable float32 2^y of y = factor * x <= 125, relative error under 3e-7; 2^-125 below -125, NaN for NaN.

    y = n + r with |r| <= 1/2; n is added to the exponent of 2^r. factor > 0 is a number, x a TIR expression.
    """
    x = bind(T.max(T.float32(max(-125 / factor, LEAST)), x))
    bits = bind(
        T.reinterpret("int32", x * T.float32(factor) + T.float32(ROUND))
    )  # as bits, or TIR takes y + ROUND - ROUND for y
    n = bind(T.reinterpret("float32", bits) - T.float32(ROUND))
    # 2^r as a polynomial of -r: a product with -factor is another than that above, so both are fused with what they add to
    power = polynomial(bind(x * T.float32(-factor) + n), [(-1) ** i * c for i, c in enumerate(coefficients)])
    return T.reinterpret("float32", T.reinterpret("int32", power) + (bits << 23))


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

    part_keys = PART if depth <= 128 else PART // 2
    growth = min(8 / factor, -LEAST / 4)  # by which a logit may exceed the largest that is known: a factor of 2^8

    def tile_rows(num_queries):
        """Queries of a task: all tasks of a segment and head have about as many, whole blocks."""
        tiles = T.max((num_queries + (QUERIES - 1)) // QUERIES, T.int64(1))
        return (num_queries + tiles * BLOCK - 1) // (tiles * BLOCK) * BLOCK

    def parts_of(num_keys):
        return T.max(T.int64(1), (num_keys + (part_keys - KEYS)) // part_keys)

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
    def load_keys(k, k_order, first, count, h, keys, slot):
        """keys[slot, panel, :, lane] = k[first + panel * cols + lane, h, :]; the last one again up to a whole vector"""
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
                        keys[slot, panel, j * SQUARE + r, left + lane] = block[r, lane]
            for r in range(SQUARE):
                row: T.let = k_row(k_order, first + T.min(i * SQUARE + r, count - 1))
                for step in range(depth // pair // SQUARE * SQUARE, depth // pair):
                    keys[slot, panel, step, left + r] = step_of(k, row, h, step)
                if depth % pair > 0:
                    keys[slot, panel, steps - 1, left + r] = last_step_of(k, row, h)

    @inline
    def load_values(v, k_order, first, count, h, values, slot):
        """values[slot, panel, step, column] = v[first + step, h, panel * cols + column], or pairs; then zeros"""
        for step in range((count + pair - 1) // pair):
            row: T.let = k_row(k_order, first + step * pair)
            next_row: T.let = k_row(k_order, first + T.min(step * pair + 1, count - 1))  # its weight is next to nothing
            for panel in T.unroll(depth // cols):
                for column in range(cols):
                    values[slot, panel, step, column] = value_of(v, row, next_row, h, panel * cols + column)
            for column in range(depth % cols):
                values[slot, depth // cols, step, column] = value_of(v, row, next_row, h, depth // cols * cols + column)
            for column in range(depth % cols, last_vectors * lanes):
                values[slot, depth // cols, step, column] = T.Cast(packed, 0)

    def raised(most, largest):
        return T.Select(most - largest > T.float32(growth), most, largest)

    def shown(value, key, num_keys, masked):
        """A logit; a Select, as an if_then_else would become a branch for each lane."""
        return T.Select(key < num_keys, value, T.float32(LEAST)) if masked else value

    @inline
    def keep_logit(value, row, key, lane, masked, num_keys, logits, most):
        logits[row, key] = shown(value, key, num_keys, masked)
        most[row, lane] = T.max(value, most[row, lane])

    @inline
    def find_panel(columns, masked, panel, queries, first, count, keys, num_keys, logits, most):
        """logits of `columns` keys, `masked` the least number past the last key, and the most of each row and lane"""
        for group in range(count // rows):
            acc = micro.accumulators(rows, columns)
            acc.load(lambda r, column: T.float32(0))
            micro.multiply_packed(acc, queries, first + group * rows, keys, panel, 0, steps)
            acc.store(
                lambda value, r, column: keep_logit(
                    value, group * rows + r, panel * cols + column, column % lanes, masked, num_keys, logits, most
                )
            )

    @inline
    def hide_vector(first, count, logits):
        """logits[:, first : first + lanes] = the least number"""
        for i in range(count):
            for lane in T.vectorized(lanes):
                logits[i, first + lane] = T.float32(LEAST)

    def find_logits(queries, first, count, keys, num_keys, logits, most):
        """Emit: logits[i, j] = queries[first + i, :] . keys[:, j], of the last panel as many vectors as have keys"""
        with T.serial(0, num_keys // cols) as panel:
            find_panel(cols, False, panel, queries, first, count, keys, num_keys, logits, most)
        for columns in range(lanes, cols + 1, lanes):
            with T.If((num_keys % cols + lanes - 1) // lanes * lanes == columns), T.Then():
                find_panel(columns, True, num_keys // cols, queries, first, count, keys, num_keys, logits, most)
                if columns // lanes % pair:  # weights are packed from pairs of vectors
                    hide_vector(num_keys // cols * cols + columns, count, logits)

    @inline
    def raise_largest(most, row, count, largest, total, sums):
        """Where a logit is too large for largest[row + i], that becomes the largest so far, and the sums count from there."""
        excess = T.alloc_buffer((lanes,), "float32")  # a register, like those below
        for lane in T.vectorized(lanes):
            excess[lane] = T.float32(LEAST)
        for i in range(count):
            for lane in T.vectorized(lanes):
                excess[lane] = T.max(most[i, lane] - largest[row + i], excess[lane])  # never NaN
        fold(excess, lanes, T.max)
        if excess[0] > T.float32(growth):
            decay = T.alloc_buffer((BLOCK,), "float32")
            for i in range(count):
                whole = T.alloc_buffer((lanes,), "float32")
                for lane in T.vectorized(lanes):
                    whole[lane] = most[i, lane]
                fold(whole, lanes, T.max)
                decay[i] = whole[0]
            for vector in range(BLOCK // SQUARE):
                for lane in T.vectorized(SQUARE):
                    decay[vector * SQUARE + lane] = raised(decay[vector * SQUARE + lane], largest[row + vector * SQUARE + lane])
                earlier = T.alloc_buffer((SQUARE,), "float32")
                for lane in T.vectorized(SQUARE):
                    earlier[lane] = largest[row + vector * SQUARE + lane]
                    largest[row + vector * SQUARE + lane] = decay[vector * SQUARE + lane]
                    decay[vector * SQUARE + lane] = exp2(earlier[lane] - decay[vector * SQUARE + lane], factor)
            for i in range(count):
                for lane in T.vectorized(lanes):
                    total[row + i, lane] = total[row + i, lane] * decay[i]
                for vector in range(channels // lanes):
                    for lane in T.vectorized(lanes):
                        sums[row + i, vector * lanes + lane] = sums[row + i, vector * lanes + lane] * decay[i]

    @inline
    def find_weights(logits, row, count, num_keys, largest, total, weights):
        """weights[i, :] = 2^(factor (logits[i, :] - largest so far)), which add to total[row + i]; may be `logits`"""
        for i in range(count):
            sum_ = T.alloc_buffer((lanes,), "float32")  # a register
            for lane in T.vectorized(lanes):
                sum_[lane] = total[row + i, lane]
            if micro.dot:
                for j in range((num_keys + 2 * lanes - 1) // (2 * lanes)):
                    both = T.alloc_buffer((2 * lanes,), "float32")  # registers
                    for half in T.unroll(2):
                        for lane in T.vectorized(lanes):
                            both[half * lanes + lane] = exp2(
                                logits[i, (2 * j + half) * lanes + lane] - largest[row + i], factor, EXP2_SHORT
                            )
                        for lane in T.vectorized(lanes):
                            sum_[lane] += both[half * lanes + lane]
                    weights[i, T.Ramp(j * lanes, 1, lanes)] = T.call_pure_extern(
                        f"int32x{lanes}", "pack_bf16_pairs", both[T.Ramp(0, 1, lanes)], both[T.Ramp(lanes, 1, lanes)]
                    )
            else:
                for j in range((num_keys + lanes - 1) // lanes):
                    for lane in T.vectorized(lanes):
                        logits[i, j * lanes + lane] = exp2(logits[i, j * lanes + lane] - largest[row + i], factor)
                    for lane in T.vectorized(lanes):
                        sum_[lane] += logits[i, j * lanes + lane]
            for lane in T.vectorized(lanes):
                total[row + i, lane] = sum_[lane]

    @inline
    def add_panel(columns, panel, weights, first, count, values, num_keys, sums):
        """sums[first + i, :] += weights[i, :] @ values, `columns` channels"""
        for group in range(count // rows):
            row: T.let = first + group * rows
            acc = micro.accumulators(rows, columns)
            acc.load(lambda r, column: sums[row + r, panel * cols + column])
            micro.multiply_packed(acc, weights, group * rows, values, panel, 0, (num_keys + pair - 1) // pair)
            acc.store(lambda value, r, column: T.buffer_store(sums, value, [row + r, panel * cols + column]))

    def add_values(*args):
        """Emit: `add_panel` for all channels."""
        if depth >= cols:
            with T.serial(0, depth // cols) as panel:
                add_panel(cols, panel, *args)
        if last_vectors:
            add_panel(last_vectors * lanes, depth // cols, *args)

    def decayed(mine, other, mine_is_larger, decay):
        return T.Select(mine_is_larger, other, mine) * decay + T.Select(mine_is_larger, mine, other)

    @inline
    def keep(sums, total, largest, count, kept_sums, kept_total, kept_largest, first):
        """Rows from `first` on = the states of `count` queries"""
        for i in range(count):
            kept_largest[first + i] = largest[i]
            for lane in T.vectorized(lanes):
                kept_total[first + i, lane] = total[i, lane]
            for vector in range(channels // lanes):
                for lane in T.vectorized(lanes):
                    kept_sums[first + i, vector * lanes + lane] = sums[i, vector * lanes + lane]

    @inline
    def merge(sums, total, largest, row, more_sums, more_total, more_largest, more_row):
        """Row `row` of a state takes in a row of another one, of earlier keys or of later ones: the result is the same."""
        # The smaller state is multiplied by what it decays to and the larger one added: in one rounding or two, but at every
        # place alike, or the bits would depend on where it is done.
        here: T.let = largest[row] >= more_largest[more_row]
        decay = T.alloc_buffer((1,), "float32")
        decay[0] = exp2(-T.abs(largest[row] - more_largest[more_row]), factor)
        for lane in T.vectorized(lanes):
            total[row, lane] = decayed(total[row, lane], more_total[more_row, lane], here, decay[0])
        for vector in range(channels // lanes):
            for lane in T.vectorized(lanes):
                sums[row, vector * lanes + lane] = decayed(
                    sums[row, vector * lanes + lane], more_sums[more_row, vector * lanes + lane], here, decay[0]
                )
        largest[row] = T.max(largest[row], more_largest[more_row])

    @inline
    def store(sums, total, largest, i, has_keys, out, row, h):
        """out[row, h, :] = sums[i, :] / total[i], NaN where no logit is above minus infinity"""
        whole = T.alloc_buffer((lanes,), "float32")  # a register
        for lane in T.vectorized(lanes):
            whole[lane] = total[i, lane]
        fold(whole, lanes, lambda a, b: a + b)
        share: T.let = T.if_then_else(
            has_keys, T.Select(largest[i] > T.float32(LEAST), T.float32(1) / whole[0], T.float32(float("nan"))), T.float32(0)
        )
        for d in range(depth):
            out[row, h, d] = T.Cast(dtype, sums[i, d] * share)

    @inline
    def copy_tile(shared, slot, own):
        for panel, step in T.grid(own.shape[1], own.shape[2]):
            for vector in T.unroll(cols // lanes):
                for lane in T.vectorized(lanes):
                    own[0, panel, step, vector * lanes + lane] = shared[slot, panel, step, vector * lanes + lane]

    @inline
    def ask_for_part(shared, slot, part, parts):
        """Fetch one of the parts of a tile, step after step of all panels."""
        steps_here: T.let = (shared.shape[1] * shared.shape[2] + parts - 1) // parts
        for step in range(T.min(steps_here, shared.shape[1] * shared.shape[2] - part * steps_here)):
            for line in T.unroll(cols * 4 // LINE):
                prefetch(T.address_of(shared[slot, 0, part * steps_here + step, line * (LINE // 4)]))

    @inline
    def walk(
        k,
        v,
        k_order,
        first_key,
        num_keys,
        h,
        is_shared,
        shared_keys,
        shared_values,
        num_slots,
        first_slot,
        queries,
        padded,
        base,
        keys,
        values,
        logits,
        most,
        weights,
        sums,
        total,
        largest,
    ):
        """The state of `padded` queries over `num_keys` keys, at the rows from `base` on"""
        for i in range(padded):
            largest[base + i] = T.float32(LEAST)
            for lane in T.vectorized(lanes):
                total[base + i, lane] = T.float32(0)
            for channel in range(channels):
                sums[base + i, channel] = T.float32(0)
        for tile in range((num_keys + KEYS - 1) // KEYS):
            here: T.let = T.min(T.int64(KEYS), num_keys - tile * KEYS)
            blocks: T.let = (padded + BLOCK - 1) // BLOCK
            if is_shared:
                copy_tile(shared_keys, (first_slot + tile) * heads + h, keys)
                copy_tile(shared_values, (first_slot + tile) * heads + h, values)
            else:
                load_keys(k, k_order, first_key + tile * KEYS, here, h, keys, 0)
                load_values(v, k_order, first_key + tile * KEYS, here, h, values, 0)
            for block in range(blocks):
                start: T.let = block * BLOCK
                row: T.let = base + start
                height: T.let = T.min(T.int64(BLOCK), padded - start)
                for i in range(height):
                    for lane in T.vectorized(lanes):
                        most[i, lane] = T.float32(LEAST)
                if is_shared:
                    following: T.let = T.min((first_slot + tile + 1) * heads + h, num_slots - 1)
                    ask_for_part(shared_keys, following, block, blocks)
                    ask_for_part(shared_values, following, block, blocks)
                find_logits(queries, start, height, keys, here, logits, most)
                raise_largest(most, row, height, largest, total, sums)
                find_weights(logits, row, height, here, largest, total, weights)
                add_values(weights, row, height, values, here, sums)

    @inline
    def cut_keys(k_offsets, segments, tiles, first_slot):
        """The tiles of keys of all segments"""
        first_slot[0] = T.int64(0)
        for b in range(segments):
            first: T.let = T.Cast("int64", k_offsets[b])
            num_keys: T.let = T.Cast("int64", k_offsets[b + 1]) - first
            for tile in range((num_keys + KEYS - 1) // KEYS):
                tiles[first_slot[b] + tile, 0] = first + tile * KEYS
                tiles[first_slot[b] + tile, 1] = T.min(num_keys - tile * KEYS, T.int64(KEYS))
            first_slot[b + 1] = first_slot[b] + (num_keys + KEYS - 1) // KEYS

    @inline
    def plan(q_offsets, k_offsets, segments, has_few, counts, tasks, first_state):
        """All tasks: segment, head, first query in it, first part, most queries, parts, first state that it keeps.

        Those of a segment and a head follow each other, so that its keys and values stay in cache.
        """
        most = T.alloc_buffer((1,), "int64")  # parts of a segment
        most[0] = T.int64(1)
        for b in range(segments):
            most[0] = T.max(most[0], parts_of(T.Cast("int64", k_offsets[b + 1]) - T.Cast("int64", k_offsets[b])))
        counts[0] = T.int64(0)
        counts[1] = T.int64(0)
        of = T.alloc_buffer((5,), "int64")  # a segment: queries, rows of a task, tasks, parts, parts of a task
        for b in range(segments):
            of[0] = T.Cast("int64", q_offsets[b + 1]) - T.Cast("int64", q_offsets[b])
            of[1] = tile_rows(of[0])
            of[2] = (of[0] + QUERIES - 1) // QUERIES
            of[3] = T.int64(1)
            of[4] = parts_of(T.Cast("int64", k_offsets[b + 1]) - T.Cast("int64", k_offsets[b]))
            first_state[b] = counts[1]
            if T.And(has_few, most[0] > 1):
                of[3] = of[4]
                of[4] = T.int64(1)
                counts[1] += of[0] * heads * of[3]
            for h in range(heads):
                for tile in range(of[2]):
                    for part in range(of[3]):
                        at: T.let = counts[0] + (h * of[2] + tile) * of[3] + part
                        tasks[at, 0] = b
                        tasks[at, 1] = T.int64(h)
                        tasks[at, 2] = tile * of[1]
                        tasks[at, 3] = part
                        tasks[at, 4] = of[1]
                        tasks[at, 5] = of[4]
                        tasks[at, 6] = first_state[b] + (part * heads + h) * of[0] + tile * of[1]
            counts[0] += heads * of[2] * of[3]

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
        num_picked: T.let = mk if has_k_order else nk
        if micro.dot:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
            T.attr(T.int32(0), "pragma_import_llvm", pack_ir(isa))
        if has_q_order:
            check_rows("q_order", q_order, nq, nq)
            check_repeats("q_order", q_order, nq)
        if has_k_order:
            check_rows("k_order", k_order, mk, nk)
        check_offsets("q_offsets", q_offsets, batch - 1, nq)
        check_offsets("k_offsets", k_offsets, batch - 1, mk if has_k_order else nk)
        has_few: T.let = T.And(
            T.And((nq // QUERIES + batch) * heads <= FEW, nq <= FEW_QUERIES * part_keys), num_picked >= part_keys + KEYS
        )
        most_parts: T.let = T.if_then_else(has_few, num_picked // part_keys + 1, T.int64(1))
        most_states: T.let = T.if_then_else(has_few, nq * heads * most_parts, T.int64(1))
        counts = T.alloc_buffer((2,), "int64")  # tasks, states kept between them
        tasks = T.alloc_buffer(((nq // QUERIES + batch) * heads * most_parts, 7), "int64")  # see `plan`
        first_state = T.alloc_buffer((batch,), "int64")  # of a segment
        kept_sums = T.alloc_buffer((most_states, channels), "float32")
        kept_total = T.alloc_buffer((most_states, lanes), "float32")
        kept_largest = T.alloc_buffer((most_states,), "float32")
        is_shared: T.let = nq >= 2 * QUERIES * (batch - 1)
        slots: T.let = T.if_then_else(is_shared, num_picked // KEYS + batch, T.int64(1))
        tiles = T.alloc_buffer((slots, 2), "int64")  # of keys that tasks share: the first one, their number
        first_slot = T.alloc_buffer((batch,), "int64")  # of a segment
        shared_keys = T.alloc_buffer((slots * heads, KEYS // cols, steps, cols), packed)
        shared_values = T.alloc_buffer((slots * heads, micro.tile.panels(depth), KEYS // pair, cols), packed)
        if is_shared:
            cut_keys(k_offsets, batch - 1, tiles, first_slot)
            for task in T.parallel(first_slot[batch - 1] * heads):
                first: T.let = tiles[task // heads, 0]
                here: T.let = tiles[task // heads, 1]
                load_keys(k, k_order, first, here, task % heads, shared_keys, task)
                load_values(v, k_order, first, here, task % heads, shared_values, task)
        plan(q_offsets, k_offsets, batch - 1, has_few, counts, tasks, first_state)
        for task in T.parallel(counts[0]):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring tasks cost alike: deal them out
            queries = T.alloc_buffer((QUERIES, steps), packed)
            keys = T.alloc_buffer((1, KEYS // cols, steps, cols), packed)
            values = T.alloc_buffer((1, micro.tile.panels(depth), KEYS // pair, cols), packed)
            logits = T.alloc_buffer((BLOCK, KEYS), "float32")
            most = T.alloc_buffer((BLOCK, lanes), "float32")
            weights = T.alloc_buffer((BLOCK, KEYS // pair), packed) if micro.dot else logits
            sums = T.alloc_buffer((2 * QUERIES, channels), "float32")
            total = T.alloc_buffer((2 * QUERIES, lanes), "float32")
            largest = T.alloc_buffer((2 * QUERIES,), "float32")
            # Numbers lie in small buffers: each use of a variable would compute its value anew.
            at = T.alloc_buffer(
                (7,), "int64"
            )  # segment, head, first query, queries, those of whole register tiles, first key, keys
            at[0] = tasks[task, 0]
            at[1] = tasks[task, 1]
            at[2] = T.Cast("int64", q_offsets[at[0]]) + tasks[task, 2]
            at[3] = T.min(T.Cast("int64", q_offsets[at[0] + 1]) - at[2], tasks[task, 4])
            at[4] = (at[3] + rows - 1) // rows * rows
            at[5] = T.Cast("int64", k_offsets[at[0]])
            at[6] = T.Cast("int64", k_offsets[at[0] + 1]) - at[5]
            load_queries(q, q_order, at[2], at[3], at[1], queries)
            part = T.alloc_buffer(
                (5,), "int64"
            )  # its number, its first key in the segment, keys, tile of keys, row of the state
            for i in range(tasks[task, 5]):
                part[0] = tasks[task, 3] + i
                part[1] = part[0] * part_keys
                part[2] = T.if_then_else(part[0] == parts_of(at[6]) - 1, at[6] - part[1], T.int64(part_keys))
                part[3] = T.if_then_else(is_shared, first_slot[at[0]] + part[1] // KEYS, T.int64(0))
                part[4] = T.if_then_else(i > 0, T.int64(QUERIES), T.int64(0))
                walk(
                    *(k, v, k_order, at[5] + part[1], part[2], at[1], is_shared, shared_keys, shared_values, slots * heads),
                    *(part[3], queries, at[4], part[4], keys, values, logits, most, weights, sums, total, largest),
                )
                if i > 0:
                    for row in range(at[3]):
                        merge(sums, total, largest, row, sums, total, largest, part[4] + row)
            if counts[1] > 0:
                keep(sums, total, largest, at[3], kept_sums, kept_total, kept_largest, tasks[task, 6])
            else:
                for i in range(at[3]):
                    store(sums, total, largest, i, at[6] > 0, out, q_row(q_order, at[2] + i), at[1])
        if counts[1] > 0:
            for task in T.parallel(nq * heads):
                position: T.let = task // heads
                at = T.alloc_buffer(
                    (5,), "int64"
                )  # segment, its queries, parts, the state of the query in the first part, keys
                at[0] = T.int64(0)
                for other in range(batch - 2):
                    if T.Cast("int64", q_offsets[other + 1]) <= position:
                        at[0] = other + 1
                at[1] = T.Cast("int64", q_offsets[at[0] + 1]) - T.Cast("int64", q_offsets[at[0]])
                at[4] = T.Cast("int64", k_offsets[at[0] + 1]) - T.Cast("int64", k_offsets[at[0]])
                at[2] = parts_of(at[4])
                at[3] = first_state[at[0]] + task % heads * at[1] + position - T.Cast("int64", q_offsets[at[0]])
                for part in range(at[2] - 1):
                    before: T.let = at[3] + part * heads * at[1]
                    merge(
                        *(kept_sums, kept_total, kept_largest, before + heads * at[1]),
                        *(kept_sums, kept_total, kept_largest, before),
                    )
                last: T.let = at[3] + (at[2] - 1) * heads * at[1]
                store(kept_sums, kept_total, kept_largest, last, at[4] > 0, out, q_row(q_order, position), task % heads)

    given = {"q_order": has_q_order, "k_order": has_k_order}
    return drop_parameters(kernel, *(name for name, present in given.items() if not present))
