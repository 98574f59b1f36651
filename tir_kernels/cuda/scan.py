"""Prefix sums of integers as launches of a kernel: `exclusive_scan`, and the launches that it is made of.

Tiles of values are summed, these sums are summed by one block, and then every tile is summed again from where it begins. A warp
reads neighbouring values of its part of a tile, and adds them up without a barrier.

`values` is a buffer, or a function of an int64 place, which the device evaluates; `count` is an int64 expression of 0 or more.
"""

from collections.abc import Callable

import tvm
from tvm.script import tirx as T

from ..buffers import named
from ..script import inline
from .gpu import WARP
from .launch import blocks_for, left_to_nvcc
from .warp import add_lower_lanes, from_lane

THREADS = 256
WARPS = THREADS // WARP
ROUNDS = 16  # values of a thread
SCAN_REGISTERS = 97  # at most, which kernels that sum so state as theirs: 2 blocks a processor
PART = ROUNDS * WARP  # values of a warp
TILE = WARPS * PART  # values of a block
FEW = 4 * TILE  # values that one block sums alone, as two launches more would take longer


def exclusive_scan(values, sums, count) -> None:
    """Emit launches: sums[i] = values[0] + ... + values[i - 1] for i from 0 to `count`.

    `sums`: a buffer [count + 1] of int32 or int64, which the sums must fit. It may be that of the values.
    """
    with T.If(count <= FEW):
        with T.Then():
            scan_by_one_block(values, sums, count)
        with T.Else():
            tiles = blocks_for(count, TILE)
            tile_sums = named("tile_sums", T.alloc_buffer((tiles + 1,), sums.dtype))
            sum_tiles(values, tile_sums, count)
            scan_by_one_block(tile_sums, tile_sums, tiles)
            scan_tiles(values, tile_sums, count, sums.dtype, lambda place, before, value: T.buffer_store(sums, before, [place]))
            _copy_total(tile_sums, tiles, sums, count)


def sum_tiles(values, tile_sums, count) -> None:
    """Emit a launch: tile_sums[i] = the sum of tile i, in the dtype of `tile_sums`."""
    dtype, value_at = tile_sums.dtype, _reader(values, tile_sums.dtype)

    @inline
    def emit(tile_sums, count):
        with T.launch_thread("blockIdx.x", blocks_for(count, TILE)) as tile:
            thread = T.launch_thread("threadIdx.x", THREADS)
            left_to_nvcc()
            sum_ = T.alloc_local((1,), dtype)
            totals = T.alloc_shared((WARPS,), dtype)
            first: T.let = T.Cast("int64", tile) * TILE
            sum_[0] = T.Cast(dtype, 0)
            for i in T.unroll(ROUNDS):
                if first + T.Cast("int64", i * THREADS + thread) < count:
                    sum_[0] = sum_[0] + value_at(first + T.Cast("int64", i * THREADS + thread))
            add_lower_lanes(sum_, 0, thread % WARP)
            if thread % WARP == WARP - 1:
                totals[thread // WARP] = sum_[0]
            T.tvm_storage_sync("shared")
            if T.And(thread == 0, first < count):
                sum_[0] = T.Cast(dtype, 0)
                for i in T.unroll(WARPS):
                    sum_[0] = sum_[0] + totals[i]
                tile_sums[T.Cast("int64", tile)] = sum_[0]

    emit(tile_sums, count)


def scan_by_one_block(values, sums, count, total=None) -> None:
    """Emit a launch: as `exclusive_scan`, by one block. The sum of all goes to `total` [1] if that is given, a buffer."""
    dtype, value_at = sums.dtype, _reader(values, sums.dtype)

    def store(place, before, value):
        T.buffer_store(sums, before, [place])

    def store_total(sum_):
        T.buffer_store(*((sums, sum_, [count]) if total is None else (total, sum_, [0])))

    @inline
    def emit(count):
        with T.launch_thread("blockIdx.x", 1):
            thread = T.launch_thread("threadIdx.x", THREADS)
            left_to_nvcc()
            before = T.alloc_local((1,), dtype)
            before[0] = T.Cast(dtype, 0)
            for tile in range((count + TILE - 1) // TILE):
                _scan_tile(value_at, store, tile * TILE, count, thread, before, dtype)
            if thread == 0:
                store_total(before[0])

    emit(count)


def scan_tiles(values, before_tile, count, dtype: str, store: Callable) -> None:
    """Emit a launch: for each place `store(place, sum of the values before it, value)`, in `dtype`.

    before_tile [tiles]: the sum of the values before each tile.
    """
    value_at = _reader(values, dtype)

    @inline
    def emit(before_tile, count):
        with T.launch_thread("blockIdx.x", blocks_for(count, TILE)) as tile:
            thread = T.launch_thread("threadIdx.x", THREADS)
            left_to_nvcc()
            before = T.alloc_local((1,), dtype)
            first: T.let = T.Cast("int64", tile) * TILE
            before[0] = T.Cast(dtype, 0)
            if first < count:
                before[0] = T.Cast(dtype, before_tile[T.Cast("int64", tile)])
            _scan_tile(value_at, store, first, count, thread, before, dtype)

    emit(before_tile, count)


def _reader(values, dtype: str) -> Callable:
    """The value of a place as `dtype`."""
    read = (lambda place: values[place]) if isinstance(values, tvm.tirx.Buffer) else values
    return lambda place: T.Cast(dtype, read(place))


@inline
def _scan_tile(value_at, store, first, count, thread, before, dtype):
    """Store each place of the tile from `first` on; before[0] is the sum of what comes before the tile, and goes on over it."""
    value = T.alloc_local((ROUNDS,), dtype)
    sum_ = T.alloc_local((ROUNDS,), dtype)
    own = T.alloc_local((1,), dtype)
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
    own[0] = T.Cast(dtype, 0)  # the rounds before
    for i in T.unroll(ROUNDS):
        rest: T.let = from_lane(sum_[i], WARP - 1)
        sum_[i] = own[0] + sum_[i] - value[i]
        own[0] = own[0] + rest
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
            store(place + i * WARP, own[0] + sum_[i], value[i])


@inline
def _copy_total(tile_sums, tiles, sums, count):
    with T.launch_thread("blockIdx.x", 1):
        T.launch_thread("threadIdx.x", 1)
        sums[count] = tile_sums[tiles]
