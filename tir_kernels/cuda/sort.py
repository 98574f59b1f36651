"""Sorting by integer keys as launches of a kernel: `sort_pairs`, and where each value begins in what is sorted: `find_starts`.

The sort is a radix sort, from the lowest digit on, and stable. For each digit a block counts its tile of keys by digit, the
counts are summed, and the block places its keys: keys of one digit keep the order of warps, of rounds within a warp, and of
lanes. The host runs the same three launches for every digit.
"""

import tvm
from tvm.script import tirx as T

from ..script import inline
from .gpu import WARP
from .launch import blocks_for, for_each, left_to_nvcc
from .warp import add_lower_lanes, from_lane, rank_in_warp

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
THREADS = DIGITS  # one to each digit
WARPS = THREADS // WARP
ROUNDS = 8  # keys of a thread
SORT_REGISTERS = 64  # at most, which kernels that sort state as theirs: 4 blocks a processor
PART = ROUNDS * WARP  # keys of a warp
TILE = WARPS * PART  # keys of a block


def bits_below(limit):
    """An int64 expression: bits that hold the numbers from 0 to limit - 1, as a multiple of those of a digit, up to 40."""
    bits = T.int64(DIGIT_BITS)
    for digits in range(1, 5):
        bits = bits + T.Select(limit > 1 << digits * DIGIT_BITS, T.int64(DIGIT_BITS), T.int64(0))
    return bits


def sort_pairs(keys, rows, sorted_keys, sorted_rows, count, bits) -> None:
    """Emit launches: `count` keys in ascending order of their lowest `bits` bits, with their rows; equal keys keep their order.

    keys, sorted_keys: buffers [count] of int32 or int64; rows, sorted_rows: int32 [count]; `rows` None for 0 to count - 1.
    `count` is an int64 expression from 0 to 2^31 - 1; `bits` is an int of 1 or more, or an int64 expression where no key
    has bits above. `keys` and `rows` are kept: the sorted ones are other buffers. Bits are compared as those of unsigned
    numbers, so a key that may be negative needs its sign bit flipped.
    """
    dtype = keys.dtype

    def digit_of(key, step):
        """The digit of a pass, without the bits above `bits`."""
        digit = T.bitwise_and(T.Cast("int32", T.shift_right(key, T.Cast(dtype, step * DIGIT_BITS))), DIGITS - 1)
        if isinstance(bits, int) and bits % DIGIT_BITS:
            return T.Select(step == bits // DIGIT_BITS, T.bitwise_and(digit, (1 << bits % DIGIT_BITS) - 1), digit)
        return digit

    @inline
    def clear(counters, thread):
        for warp in T.unroll(WARPS):
            counters[warp * DIGITS + thread] = 0

    @inline
    def load(key, keys, other_keys, first, count, step, side):
        """the keys of a thread: in the first pass those given, later those of one side of `other_keys` [2, count]"""
        for i in T.unroll(ROUNDS):
            key[i] = T.Cast(dtype, 0)
            if first + i * WARP < count:
                if step == 0:
                    key[i] = keys[first + i * WARP]
                else:
                    key[i] = other_keys[side, first + i * WARP]

    @inline
    def count_digits(keys, other_keys, counts, count, tiles, step, side):
        """counts[digit, tile]"""
        with T.launch_thread("blockIdx.x", tiles) as tile:
            thread = T.launch_thread("threadIdx.x", THREADS)
            left_to_nvcc()
            counters = T.alloc_shared((WARPS * DIGITS,), "int32")
            total = T.alloc_local((1,), "int32")
            key = T.alloc_local((ROUNDS,), dtype)
            warp: T.let = thread // WARP
            first: T.let = T.Cast("int64", tile) * TILE + T.Cast("int64", warp * PART + thread % WARP)
            clear(counters, thread)
            load(key, keys, other_keys, first, count, step, side)
            T.tvm_storage_sync("shared")
            for i in T.unroll(ROUNDS):
                T.evaluate(
                    rank_in_warp(counters, [warp * DIGITS], digit_of(key[i], step), DIGIT_BITS, first + i * WARP < count)
                )
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
            left_to_nvcc()
            sum_ = T.alloc_local((1,), "int32")
            own = T.alloc_local((1,), "int32")
            before = T.alloc_local((1,), "int32")
            digit: T.let = T.Cast("int64", block * WARPS + thread // WARP)
            lane: T.let = thread % WARP
            before[0] = 0
            for part in range((tiles + WARP - 1) // WARP):
                tile: T.let = part * WARP + T.Cast("int64", lane)
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
    def place_keys(
        keys, row_at, other_keys, other_rows, sorted_keys, sorted_rows, counts, totals, count, tiles, step, side, last
    ):
        with T.launch_thread("blockIdx.x", tiles) as tile:
            thread = T.launch_thread("threadIdx.x", THREADS)
            left_to_nvcc()
            counters = T.alloc_shared((WARPS * DIGITS,), "int32")
            sums = T.alloc_shared((WARPS,), "int32")
            key = T.alloc_local((ROUNDS,), dtype)
            rank = T.alloc_local((ROUNDS,), "int32")
            row = T.alloc_local((1,), "int32")
            sum_ = T.alloc_local((1,), "int32")
            own = T.alloc_local((1,), "int32")
            begin = T.alloc_local((WARPS,), "int32")
            warp: T.let = thread // WARP
            lane: T.let = thread % WARP
            first: T.let = T.Cast("int64", tile) * TILE + T.Cast("int64", warp * PART + lane)
            clear(counters, thread)
            load(key, keys, other_keys, first, count, step, side)
            T.tvm_storage_sync("shared")
            for i in T.unroll(ROUNDS):
                rank[i] = rank_in_warp(counters, [warp * DIGITS], digit_of(key[i], step), DIGIT_BITS, first + i * WARP < count)
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
                    place: T.let = T.Cast("int64", counters[warp * DIGITS + digit_of(key[i], step)] + rank[i])
                    if step == 0:
                        row[0] = row_at(first + i * WARP)
                    else:
                        row[0] = other_rows[side, first + i * WARP]
                    if last:
                        sorted_keys[place] = key[i]
                        sorted_rows[place] = row[0]
                    else:
                        other_keys[1 - side, place] = key[i]
                        other_rows[1 - side, place] = row[0]

    def row_at(place):
        return T.Cast("int32", place) if rows is None else rows[place]

    @inline
    def sort(keys, sorted_keys, sorted_rows, count):
        tiles: T.let = blocks_for(count, TILE)
        digits: T.let = (bits + DIGIT_BITS - 1) // DIGIT_BITS
        counts = T.alloc_buffer((DIGITS, blocks_for(count, TILE)), "int32")
        totals = T.alloc_buffer((DIGITS,), "int32")
        other_keys = T.alloc_buffer((2, count), dtype)
        other_rows = T.alloc_buffer((2, count), "int32")
        for step in range(digits):
            side: T.let = step % 2
            count_digits(keys, other_keys, counts, count, tiles, step, side)
            sum_counts(counts, totals, tiles)
            place_keys(
                *(keys, row_at, other_keys, other_rows, sorted_keys, sorted_rows, counts, totals),
                *(count, tiles, step, side, step == digits - 1),
            )

    sort(keys, sorted_keys, sorted_rows, count)


def find_starts(values, count, starts, entries) -> None:
    """Emit a launch: starts[e] = how many of the `count` values, which ascend, are below e, for e from 0 to entries - 1.

    `values`: a buffer, or a function of an int64 place; `starts`: int32 [entries]; `count` and `entries` are int64 expressions.
    """
    value_at = (lambda place: values[place]) if isinstance(values, tvm.tirx.Buffer) else values

    @inline
    def find(starts, count, entry):
        found = T.alloc_local((2,), "int64")
        search(found, count, lambda place: T.Cast("int64", value_at(place)) < entry)
        starts[entry] = T.Cast("int32", found[0])

    for_each(entries, lambda entry: find(starts, count, entry))


@inline
def search(found, count, is_before):
    """found[0] = how many of `count` places come before something: all those before it, and none behind; found [2] is int64."""
    found[0] = T.int64(0)
    found[1] = count
    while found[0] < found[1]:
        middle: T.let = (found[0] + found[1]) // 2
        if is_before(middle):
            found[0] = middle + 1
        else:
            found[1] = middle
