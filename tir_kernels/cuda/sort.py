"""A stable sort of integer keys with the numbers of rows, as launches of a kernel: `sort_pairs`.

A radix sort, from the lowest digit on. For each digit a block counts its tile of keys by digit, the counts are summed, and the
block places its keys: keys of one digit keep the order of warps, of rounds within a warp, and of lanes.
"""

from tvm.script import tirx as T

from ..buffers import named
from ..script import inline
from .gpu import WARP
from .launch import blocks_for
from .warp import add_lower_lanes, from_lane, rank_in_warp

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
THREADS = DIGITS  # one to each digit
WARPS = THREADS // WARP
ROUNDS = 8  # keys of a thread
PART = ROUNDS * WARP  # keys of a warp
TILE = WARPS * PART  # keys of a block


def sort_pairs(keys, rows, sorted_keys, sorted_rows, count, bits: int) -> None:
    """Emit launches: `count` keys in ascending order of their lowest `bits` bits, with their rows; equal keys keep their order.

    keys, sorted_keys: buffers [count] of int32 or int64; rows, sorted_rows: int32 [count]; `rows` None for 0 to count - 1.
    `count` is an int64 expression from 0 to 2^31 - 1. `keys` and `rows` are kept: the sorted ones are other buffers. `bits`: 1
    or more. Bits are compared as those of unsigned numbers, so a key that may be negative needs its sign bit flipped.
    """
    dtype = keys.dtype
    digits = -(-bits // DIGIT_BITS)

    def digit_of(key, low: int, width: int):
        return T.Cast("int32", T.bitwise_and(T.shift_right(key, T.Cast(dtype, low)), T.Cast(dtype, (1 << width) - 1)))

    @inline
    def clear(counters, thread):
        for warp in T.unroll(WARPS):
            counters[warp * DIGITS + thread] = 0

    @inline
    def count_digits(keys, counts, count, tiles, low, width):
        """counts[digit, tile]"""
        with T.launch_thread("blockIdx.x", tiles) as tile:
            thread = T.launch_thread("threadIdx.x", THREADS)
            T.attr(T.int32(0), "pragma_unroll_explicit", 0)
            counters = T.alloc_shared((WARPS * DIGITS,), "int32")
            total = T.alloc_local((1,), "int32")
            digit = T.alloc_local((1,), "int32")
            warp: T.let = thread // WARP
            first: T.let = T.Cast("int64", tile) * TILE + T.Cast("int64", warp * PART + thread % WARP)
            clear(counters, thread)
            T.tvm_storage_sync("shared")
            for i in T.unroll(ROUNDS):
                digit[0] = 0
                if first + i * WARP < count:
                    digit[0] = digit_of(keys[first + i * WARP], low, width)
                T.evaluate(rank_in_warp(counters, [warp * DIGITS], digit[0], width, first + i * WARP < count))
            T.tvm_storage_sync("shared")
            total[0] = 0
            for other in T.unroll(WARPS):
                total[0] = total[0] + counters[other * DIGITS + thread]
            counts[T.Cast("int64", thread), T.Cast("int64", tile)] = total[0]

    @inline
    def sum_counts(counts, totals, tiles):
        """counts[digit, tile] becomes the sum of the tiles before, totals[digit] that of all; a warp to each digit"""
        with T.launch_thread("blockIdx.x", DIGITS // WARPS) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            T.attr(T.int32(0), "pragma_unroll_explicit", 0)
            sum_ = T.alloc_local((1,), "int32")
            own = T.alloc_local((1,), "int32")
            before = T.alloc_local((1,), "int32")
            digit: T.let = T.Cast("int64", block * WARPS + thread // WARP)
            lane: T.let = thread % WARP
            before[0] = 0
            for step in range((tiles + WARP - 1) // WARP):
                tile: T.let = step * WARP + T.Cast("int64", lane)
                own[0] = 0
                if tile < tiles:
                    own[0] = counts[digit, tile]
                sum_[0] = own[0]
                add_lower_lanes(sum_, 0, lane)
                if tile < tiles:
                    counts[digit, tile] = before[0] + sum_[0] - own[0]
                before[0] = before[0] + from_lane(sum_[0], WARP - 1)
            if lane == 0:
                totals[digit] = before[0]

    @inline
    def place_keys(keys, row_at, out_keys, out_rows, counts, totals, count, tiles, low, width):
        with T.launch_thread("blockIdx.x", tiles) as tile:
            thread = T.launch_thread("threadIdx.x", THREADS)
            T.attr(T.int32(0), "pragma_unroll_explicit", 0)
            counters = T.alloc_shared((WARPS * DIGITS,), "int32")
            sums = T.alloc_shared((WARPS,), "int32")
            key = T.alloc_local((ROUNDS,), dtype)
            rank = T.alloc_local((ROUNDS,), "int32")
            sum_ = T.alloc_local((1,), "int32")
            own = T.alloc_local((1,), "int32")
            begin = T.alloc_local((WARPS,), "int32")
            warp: T.let = thread // WARP
            lane: T.let = thread % WARP
            first: T.let = T.Cast("int64", tile) * TILE + T.Cast("int64", warp * PART + lane)
            clear(counters, thread)
            T.tvm_storage_sync("shared")
            for i in T.unroll(ROUNDS):
                key[i] = T.Cast(dtype, 0)
                if first + i * WARP < count:
                    key[i] = keys[first + i * WARP]
            for i in T.unroll(ROUNDS):
                rank[i] = rank_in_warp(counters, [warp * DIGITS], digit_of(key[i], low, width), width, first + i * WARP < count)
            # Where the keys of each digit begin: behind those of lower digits, of tiles before, and of warps before.
            own[0] = totals[T.Cast("int64", thread)]
            sum_[0] = own[0]
            add_lower_lanes(sum_, 0, lane)
            if lane == WARP - 1:
                sums[warp] = sum_[0]
            T.tvm_storage_sync("shared")
            own[0] = sum_[0] - own[0]
            for other in T.unroll(WARPS):
                if other < warp:
                    own[0] = own[0] + sums[other]
            own[0] = own[0] + counts[T.Cast("int64", thread), T.Cast("int64", tile)]
            for other in T.unroll(WARPS):
                begin[other] = own[0]
                own[0] = own[0] + counters[other * DIGITS + thread]
            for other in T.unroll(WARPS):
                counters[other * DIGITS + thread] = begin[other]
            T.tvm_storage_sync("shared")
            for i in T.unroll(ROUNDS):
                if first + i * WARP < count:
                    place: T.let = T.Cast("int64", counters[warp * DIGITS + digit_of(key[i], low, width)] + rank[i])
                    out_keys[place] = key[i]
                    out_rows[place] = row_at(first + i * WARP)

    tiles = blocks_for(count, TILE)
    counts = _scratch("counts", (DIGITS, tiles), "int32")
    totals = _scratch("totals", (DIGITS,), "int32")
    others = (_scratch("other_keys", (count,), dtype), _scratch("other_rows", (count,), "int32")) if digits > 1 else None
    source = keys, (lambda place: T.Cast("int32", place)) if rows is None else (lambda place: rows[place])
    for i in range(digits):
        low, width = i * DIGIT_BITS, min(DIGIT_BITS, bits - i * DIGIT_BITS)
        target = (sorted_keys, sorted_rows) if (digits - i) % 2 else others
        count_digits(source[0], counts, count, tiles, low, width)
        sum_counts(counts, totals, tiles)
        place_keys(*source, *target, counts, totals, count, tiles, low, width)
        source = target[0], lambda place, rows=target[1]: rows[place]


def _scratch(name: str, shape, dtype: str):
    """A buffer in the device's memory, named as an assignment in a script names it."""
    return named(name, T.alloc_buffer(shape, dtype))
