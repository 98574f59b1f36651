"""Prefix sums of integers as launches of a kernel: `exclusive_scan`.

Tiles of values are summed, these sums are summed by one block, and then every tile is summed again from where it begins. A warp
reads neighbouring values of its part of a tile, and adds them up without a barrier.
"""

import tvm
from tvm.script import tirx as T

from ..script import inline
from .gpu import WARP
from .warp import add_lower_lanes, from_lane

THREADS = 256
WARPS = THREADS // WARP
ROUNDS = 16  # values of a thread
PART = ROUNDS * WARP  # values of a warp
TILE = WARPS * PART  # values of a block
FEW = 4 * TILE  # values that one block sums alone, as two launches more would take longer


def exclusive_scan(values, sums, count) -> None:
    """Emit launches: sums[i] = values[0] + ... + values[i - 1] for i from 0 to `count`, an int64 expression of 0 or more.

    `values`: a buffer, or a function of an int64 place that is evaluated on the device; `sums`: a buffer [count + 1] of int32
    or int64, which the sums must fit. Both may be the same buffer.
    """
    dtype = sums.dtype

    def given(place):
        return T.Cast(dtype, values[place] if isinstance(values, tvm.tirx.Buffer) else values(place))

    @inline
    def scan_tile(value_at, sums, first, count, thread, before):
        """sums[first ... first + TILE], those below `count`; before[0] is the sum of what comes before, and goes on"""
        value = T.alloc_local((ROUNDS,), dtype)
        sum_ = T.alloc_local((ROUNDS,), dtype)
        own = T.alloc_local((1,), dtype)  # of the rounds before
        totals = T.alloc_shared((WARPS,), dtype)
        warp: T.let = thread // WARP
        lane: T.let = thread % WARP
        place: T.let = first + T.Cast("int64", warp * PART + lane)
        for i in T.unroll(ROUNDS):
            value[i] = T.Cast(dtype, 0)
            if place + i * WARP < count:
                value[i] = value_at(place + i * WARP)
            sum_[i] = value[i]
            add_lower_lanes(sum_, i, lane)
        own[0] = T.Cast(dtype, 0)
        for i in T.unroll(ROUNDS):
            value[i] = own[0] + sum_[i] - value[i]
            own[0] = own[0] + from_lane(sum_[i], WARP - 1)
        T.tvm_storage_sync("shared")  # the totals of another tile were read
        if lane == 0:
            totals[warp] = own[0]
        T.tvm_storage_sync("shared")
        for i in T.unroll(WARPS):
            if i == warp:
                own[0] = before[0]
            before[0] = before[0] + totals[i]
        for i in T.unroll(ROUNDS):
            if place + i * WARP < count:
                sums[place + i * WARP] = own[0] + value[i]

    @inline
    def scan_by_one_block(value_at, sums, count):
        with T.launch_thread("blockIdx.x", 1):
            thread = T.launch_thread("threadIdx.x", THREADS)
            T.attr(T.int32(0), "pragma_unroll_explicit", 0)
            before = T.alloc_local((1,), dtype)
            before[0] = T.Cast(dtype, 0)
            for tile in range((count + TILE - 1) // TILE):
                scan_tile(value_at, sums, tile * TILE, count, thread, before)
            if thread == 0:
                sums[count] = before[0]

    @inline
    def sum_tiles(value_at, tile_sums, count, tiles):
        with T.launch_thread("blockIdx.x", tiles) as tile:
            thread = T.launch_thread("threadIdx.x", THREADS)
            T.attr(T.int32(0), "pragma_unroll_explicit", 0)
            sum_ = T.alloc_local((1,), dtype)
            totals = T.alloc_shared((WARPS,), dtype)
            place: T.let = T.Cast("int64", tile) * TILE + T.Cast("int64", thread)
            sum_[0] = T.Cast(dtype, 0)
            for i in T.unroll(ROUNDS):
                if place + i * THREADS < count:
                    sum_[0] = sum_[0] + value_at(place + i * THREADS)
            add_lower_lanes(sum_, 0, thread % WARP)
            if thread % WARP == WARP - 1:
                totals[thread // WARP] = sum_[0]
            T.tvm_storage_sync("shared")
            if thread == 0:
                sum_[0] = T.Cast(dtype, 0)
                for i in T.unroll(WARPS):
                    sum_[0] = sum_[0] + totals[i]
                tile_sums[T.Cast("int64", tile)] = sum_[0]

    @inline
    def scan_tiles(value_at, tile_sums, sums, count, tiles):
        with T.launch_thread("blockIdx.x", tiles) as tile:
            thread = T.launch_thread("threadIdx.x", THREADS)
            T.attr(T.int32(0), "pragma_unroll_explicit", 0)
            before = T.alloc_local((1,), dtype)
            before[0] = tile_sums[T.Cast("int64", tile)]
            scan_tile(value_at, sums, T.Cast("int64", tile) * TILE, count, thread, before)
            if T.And(thread == 0, T.Cast("int64", tile) == tiles - 1):
                sums[count] = before[0]

    @inline
    def scan(sums, count):
        if count <= FEW:
            scan_by_one_block(given, sums, count)
        else:
            tiles: T.let = (count + TILE - 1) // TILE
            tile_sums = T.alloc_buffer(((count + TILE - 1) // TILE + 1,), dtype)
            sum_tiles(given, tile_sums, count, tiles)
            scan_by_one_block(lambda place: tile_sums[place], tile_sums, tiles)
            scan_tiles(given, tile_sums, sums, count, tiles)

    scan(sums, count)
