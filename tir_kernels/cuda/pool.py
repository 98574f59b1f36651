"""Pooling through a kernel map: a thread has some channels of an output row, and takes the live taps of its tile in order.

Where taps are cut into groups, one launch follows another, and reduced values go on in a float32 scratch.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..reduction import add, finish, initial
from ..script import inline
from ..spec.pool import Pool
from .gpu import Gpu, kernel_name
from .guards import check_map, match_status, reporting
from .launch import THREADS, blocks_for, left_to_nvcc
from .map_sums import fill_unfit
from .neighbour_table import TILE_ROWS, match_table
from .vectors import load_vector, store_vector, width

FILLING = 64  # blocks that write a result where a map does not fit


@cache
def pool(spec: Pool, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Pool`."""
    channels, reduction, dtype = spec.channels, spec.reduction, spec.dtype
    lanes = width(dtype, channels)
    pieces = channels // lanes  # of a row

    @inline
    def check(status, map_rows, n, m, taps, out):
        with T.launch_thread("blockIdx.x", FILLING) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            if T.And(block == 0, thread == 0):
                check_map(status, map_rows, n, m, taps, taps)
            fill_unfit(out, block, FILLING, thread, THREADS, T.And(map_rows[0] == n, map_rows[1] == m))

    @inline
    def add_taps(x, neighbours, tiles, value, count, n, tile, slot, c):
        given = T.alloc_local((lanes,), dtype)
        for i in range(tiles[tile, 0]):
            source: T.let = T.Cast("int64", neighbours[T.Cast("int64", tiles[tile, i + 1]), slot])
            if T.And(source >= 0, source < n):
                load_vector(given, 0, x, source, c, lanes)
                for lane in T.unroll(lanes):
                    value[lane] = add(reduction, value[lane], T.Cast("float32", given[lane]))
                count[0] = count[0] + 1

    @inline
    def finish_row(out, row, c, value, count):
        for lane in T.unroll(lanes):
            value[lane] = finish(reduction, value[lane], count[0])
        store_vector(out, row, c, value, lanes)

    @inline
    def reduce_group(x, neighbours, order, tiles, out, sums, counts, group, groups, slots, n, m):
        with T.launch_thread("blockIdx.x", blocks_for(slots * pieces)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            left_to_nvcc()
            value = T.alloc_local((lanes,), "float32")
            count = T.alloc_local((1,), "int32")
            place: T.let = T.Cast("int64", block) * THREADS + T.Cast("int64", thread)
            slot: T.let = place // pieces
            c: T.let = place % pieces * lanes
            if slot < slots:
                row: T.let = T.Cast("int64", order[group, slot])
                if T.And(row >= 0, row < m):
                    for lane in T.unroll(lanes):
                        value[lane] = initial(reduction)
                    count[0] = 0
                    if group > 0:
                        for lane in T.unroll(lanes):
                            value[lane] = sums[row, c + lane]
                        count[0] = counts[row, c]
                    add_taps(
                        *(x, neighbours, tiles, value, count, n, group * (slots // TILE_ROWS) + slot // TILE_ROWS, slot, c)
                    )
                    if group == groups - 1:
                        finish_row(out, row, c, value, count)
                    else:
                        for lane in T.unroll(lanes):
                            sums[row, c + lane] = value[lane]
                        counts[row, c] = count[0]

    @script.prim_func(s_tir=True)
    def kernel(
        x_: T.handle,
        neighbours_: T.handle,
        order_: T.handle,
        tiles_: T.handle,
        map_rows_: T.handle,
        status_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name(f"pool_{reduction.mode}", dtype)})
        n, m = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        table = T.meta_var(match_table(neighbours_, order_, tiles_))
        taps, slots, groups = T.meta_var((table.taps, table.slots, table.groups))
        map_rows = match_buffer(map_rows_, (2,), "int64")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (m, channels), dtype)
        # Each thread counts on its own, at its first channel.
        sums = T.alloc_buffer((T.Select(groups > 1, m, T.int64(0)), channels), "float32")
        counts = T.alloc_buffer((T.Select(groups > 1, m, T.int64(0)), channels), "int32")
        check(status, map_rows, n, m, taps, out)
        for group in range(groups):
            reduce_group(
                *(x, table.neighbours, table.order, table.tiles, out, sums, counts),
                *(group, groups, slots, n, m),
            )

    return reporting(kernel)
