"""The gradient of a sparse convolution's weight: for every tap, the product of two matrices whose rows the map pairs.

A task is a few taps, one panel of a group's input channels and a chunk of its output channels: a part of the result that no
other task writes. It walks the blocks of the map, and in a block its taps, which meet the same rows, a few pairs at a time:
their rows are copied side by side (narrow types are widened on the way), multiplied in register tiles, output channels by input
channels, and added to sums that stay in the cache. Where pairs are cut depends on the map alone, so the bits do not depend on
tasks or threads.
"""

from dataclasses import dataclass
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..spec.weight_gradient import SparseConvWeightGradient
from .guards import check_map
from .isa import Isa, kernel_name
from .register_tile import RegisterTile

PAIRS = 64  # of one product: with as many channels on both sides, rows and sums are about as large as an L1 cache
RUN = 3  # taps of a task, at most: the rows of a block come from memory for the first of them
CHUNK = 64  # output channels of a task, at most: they pay for the copy of its rows
TASKS = 16  # of few taps and channels; they are then cut along the output channels, so that threads have equal work


@dataclass(frozen=True)
class Operands:
    """The buffers of a weight's gradient."""

    x: tvm.tirx.Buffer  # [N, Cin]
    gradient: tvm.tirx.Buffer  # [M, Cout]
    pair_in: tvm.tirx.Buffer  # [blocks, slots]
    pair_out: tvm.tirx.Buffer  # [blocks, slots]
    segment: tvm.tirx.Buffer  # [blocks, taps + 1]
    out: tvm.tirx.Buffer  # [Cout, taps, Cin / groups]


@dataclass(frozen=True)
class Scratch:
    """What a task keeps: rows of pairs, side by side, and its sums."""

    x: tvm.tirx.Buffer  # [PAIRS, cols]
    gradient: tvm.tirx.Buffer  # [PAIRS, chunk]
    sums: tvm.tirx.Buffer  # [RUN, chunk, cols]


@cache
def weight_gradient(spec: SparseConvWeightGradient, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SparseConvWeightGradient`."""
    cin, cout, groups, dtype = spec.cin, spec.cout, spec.groups, spec.dtype
    depth, width = spec.group_cin, spec.group_cout
    micro = RegisterTile(isa, 1, depth, "float32")  # its columns are input channels, its rows output channels
    rows, cols, lanes = micro.tile.rows, micro.tile.cols, micro.tile.lanes
    tiles = -(-width // rows)  # of a group
    most_tiles = max(1, min(tiles, CHUNK // rows))  # of a task
    chunk = most_tiles * rows

    @inline
    def copy_row(source, row, first, count, target, place):
        """target[place, :count] = source[row, first : first + count]"""
        # vectors said here: LLVM cannot rule out that both overlap
        for v in range(count // lanes):
            for lane in T.vectorized(lanes):
                target[place, v * lanes + lane] = T.Cast("float32", source[row, first + v * lanes + lane])
        for c in range(count % lanes):
            target[place, count // lanes * lanes + c] = T.Cast("float32", source[row, first + count // lanes * lanes + c])

    @inline
    def multiply_tile(scratch, slot, tile, vectors, count):
        """sums[slot, tile * rows :, :] += gradient.T @ x, over the `count` pairs, in order"""
        acc = micro.accumulators(rows, vectors * lanes)
        acc.load(lambda r, column: T.float32(0))
        micro.multiply_rows(acc, scratch.gradient, tile * rows, scratch.x, count)
        acc.store(
            lambda value, r, column: T.buffer_store(
                scratch.sums, scratch.sums[slot, tile * rows + r, column] + value, [slot, tile * rows + r, column]
            )
        )

    @inline
    def clear(scratch):
        """What is past the last channel is multiplied too, and dropped: numbers that cost no more than others."""
        for slot, r in T.grid(RUN, chunk):
            for v in range(cols // lanes):
                for lane in T.vectorized(lanes):
                    scratch.sums[slot, r, v * lanes + lane] = T.float32(0)
        for pair in range(PAIRS):
            for v in range(cols // lanes):
                for lane in T.vectorized(lanes):
                    scratch.x[pair, v * lanes + lane] = T.float32(0)
            for r in range(chunk):
                scratch.gradient[pair, r] = T.float32(0)

    @inline
    def add_pairs(o, scratch, slot, block, first, count, block_rows, columns, first_in, first_out, channels, tiles):
        """sums[slot] += the products of the pairs from `first` on, all of one block and tap."""
        for pair in range(count):
            source: T.let = T.Cast("int64", o.pair_in[block, first + pair])
            copy_row(o.x, source, first_in, columns, scratch.x, pair)
        for pair in range(count):
            target: T.let = T.Cast("int64", o.pair_out[block, first + pair]) + block * block_rows
            copy_row(o.gradient, target, first_out, channels, scratch.gradient, pair)
        for tile in range(tiles):
            multiply_tile(scratch, slot, tile, (columns + lanes - 1) // lanes, count)

    @inline
    def sum_panel(o, scratch, first_tap, taps, group, panel, columns, first_tile, tiles, blocks, block_rows):
        """out[channels of the tiles, taps, columns of the panel]"""
        first: T.let = first_tile * rows  # of the group's output channels
        channels: T.let = T.min(tiles * rows, width - first)
        clear(scratch)
        for block in range(blocks):
            for slot in range(taps):
                start: T.let = T.Cast("int64", o.segment[block, first_tap + slot])
                count: T.let = T.Cast("int64", o.segment[block, first_tap + slot + 1]) - start
                parts: T.let = (count + (PAIRS - 1)) // PAIRS
                for part in range(parts):
                    begin: T.let = count * part // parts
                    end: T.let = count * (part + 1) // parts
                    add_pairs(
                        *(o, scratch, slot, block, start + begin, end - begin, block_rows),
                        *(columns, group * depth + panel * cols, group * width + first, channels, tiles),
                    )
        for slot, r in T.grid(taps, channels):
            for c in range(columns):
                o.out[group * width + first + r, first_tap + slot, panel * cols + c] = scratch.sums[slot, r, c]

    @inline
    def sum_task(o, place, blocks, block_rows):
        x = T.alloc_buffer((PAIRS, cols), "float32")
        gradient = T.alloc_buffer((PAIRS, chunk), "float32")
        sums = T.alloc_buffer((RUN, chunk, cols), "float32")
        first_tap: T.let = place[0]
        taps: T.let = place[1] - first_tap
        group: T.let = place[2]
        panel: T.let = place[3]
        first_tile: T.let = place[4]
        tiles: T.let = place[5] - first_tile
        micro.over_panels(
            lambda columns, own: sum_panel(
                *(o, Scratch(x, gradient, sums), first_tap, taps, group, own, columns, first_tile, tiles),
                *(blocks, block_rows),
            ),
            micro.panels,
            panel,
            panel + 1,
        )

    @script.prim_func(s_tir=True)
    def kernel(
        x_: T.handle,
        gradient_: T.handle,
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("weight_gradient", dtype, isa, micro.tile)})
        n, m, blocks, slots, columns = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        kx, ky, kz = T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, cin), dtype)
        gradient = match_buffer(gradient_, (m, cout), dtype)
        pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
        pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        out = match_buffer(out_, (cout, kx, ky, kz, depth), "float32")
        flat = T.decl_buffer((cout, kx * ky * kz, depth), "float32", data=out.data)
        taps: T.let = columns - 1
        check_map(map_rows, n, m, taps, kx * ky * kz)
        run: T.let = T.max(T.min(taps // 9, T.int64(RUN)), T.int64(1))  # kernels of few taps share little
        runs: T.let = (taps + (run - 1)) // run
        parts: T.let = runs * (groups * micro.panels)
        chunks: T.let = T.max(T.int64(-(-tiles // most_tiles)), T.min(T.int64(tiles), (TASKS + parts - 1) // parts))
        for task in T.parallel(parts * chunks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # taps have unlike numbers of pairs: deal them out
            place = T.alloc_buffer((6,), "int64")  # in memory, as TVM simplifies such quotients wherever they are used
            place[0] = task // chunks // (groups * micro.panels) * run
            place[1] = T.min(place[0] + run, taps)
            place[2] = task // chunks // micro.panels % groups
            place[3] = task // chunks % micro.panels
            place[4] = task % chunks * tiles // chunks
            place[5] = (task % chunks + 1) * tiles // chunks
            sum_task(Operands(x, gradient, pair_in, pair_out, segment, flat), place, blocks, slots // taps)

    return kernel
