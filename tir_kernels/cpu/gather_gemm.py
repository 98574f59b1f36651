"""Gather–GEMM–scatter over a kernel map of pairs: the sparse convolution.

The output rows are cut into blocks. A block belongs to one thread, which walks its taps in order; for each tap, groups
of pairs times one column panel accumulate in registers and add into the block's rows, which stay in the L2 cache. No two
threads add into a row and the order of every sum is fixed, so the bits do not depend on threads, tiles or block size.
Rows are read through the map, nothing is gathered first. Groups of channels are products side by side, each with its part of
the rows.
"""

from dataclasses import dataclass, replace
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..layout import WeightLayout
from ..script import drop_parameters, inline
from ..spec.sparse_conv import SparseConv
from ..vector_math import EMIT
from . import register_tile
from .caches import L1, prefetch
from .guards import check_map
from .isa import Isa, kernel_name
from .register_tile import RegisterTile
from .rows import each_channel


def weight_layout(spec: SparseConv, isa: Isa) -> WeightLayout:
    """[taps, panels, steps, cols], see `RegisterTile`; each group has panels of its own."""
    return register_tile.weight_layout((spec.cout, *spec.kernel, spec.group_cin), isa, spec.dtype, spec.groups)


def shared(spec: SparseConv, isa: Isa) -> SparseConv:
    """One kernel serves kernels of all sizes."""
    return replace(spec, kernel=(1, 1, 1), products="float")


@dataclass(frozen=True)
class Operands:
    """The buffers of a sparse convolution; a residual that it lacks is never read."""

    feats: tvm.tirx.Buffer  # [N, Cin]
    weight: tvm.tirx.Buffer  # [taps, panels, steps, cols]
    bias: tvm.tirx.Buffer  # [Cout]
    residual: tvm.tirx.Buffer  # [M, Cout]
    pair_in: tvm.tirx.Buffer  # [blocks, slots]
    pair_out: tvm.tirx.Buffer  # [blocks, slots]
    segment: tvm.tirx.Buffer  # [blocks, taps + 1]
    out: tvm.tirx.Buffer  # [M, Cout]


@dataclass(frozen=True)
class Segment:
    """The pairs of one tap in one block of output rows, which are the rows of `sums` from `base` on."""

    block: tvm.tirx.Expr
    tap: tvm.tirx.Expr
    base: tvm.tirx.Expr
    steps: tvm.tirx.Buffer  # [1], whole ones of the depth
    share: tvm.tirx.Buffer  # [1], columns of a step of the weights that a tile fetches ahead
    sums: tvm.tirx.Buffer  # [rows, Cout]


@cache
def gather_gemm(spec: SparseConv, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SparseConv`."""
    cin, cout, groups, dtype, has_residual = spec.cin, spec.cout, spec.groups, spec.dtype, spec.has_residual
    micro = RegisterTile(isa, spec.group_cin, spec.group_cout, dtype)
    tile = micro.tile
    act = EMIT[spec.activation]
    far = 4 * micro.steps * micro.panels * tile.cols > L1  # weights of a tap that no tile finds near
    direct = dtype == "float32"  # a narrower output is summed in a float32 scratch of the block

    @inline
    def start_sum(o, row, place, c, sums):
        sums[place, c] = o.bias[c] + T.Cast("float32", o.residual[row, c]) if has_residual else o.bias[c]

    @inline
    def finish_sum(o, row, place, c, sums):
        o.out[row, c] = T.Cast(dtype, act(sums[place, c]))

    @inline
    def find_rows(o, segment, rows, first, last, source, target):
        """The rows of the pairs from `first` on. Past the `last` one they are its own again, which then is stored twice"""
        for r in T.unroll(rows):
            source[r] = T.Cast("int64", o.pair_in[segment.block, T.min(first + r, last)])
            target[r] = T.Cast("int64", o.pair_out[segment.block, T.min(first + r, last)]) + segment.base

    def fetch(weight, segment, panel, tile_of_rows):
        """A function that emits, of each step c of a tile, the fetch of its share of the weights that come next in memory."""

        def ahead(c):
            address = T.address_of(weight[segment.tap, panel, micro.steps, (tile_of_rows * micro.steps + c) * segment.share[0]])
            prefetch(address)

        return ahead if far else None

    @inline
    def add_product(rows, columns, group, panel, feats, source, target, weight, segment, tile_of_rows):
        acc = micro.accumulators(rows, columns)
        first = T.meta_var(group * spec.group_cout + panel * tile.cols)  # of the output's columns
        packed = T.meta_var(group * micro.panels + panel)
        acc.load(lambda r, column: segment.sums[target[r], first + column])
        micro.multiply(
            acc,
            feats,
            source,
            weight,
            segment.tap,
            packed,
            group * spec.group_cin,
            fetch(weight, segment, packed, tile_of_rows),
            segment.steps[0],
        )
        acc.store(lambda value, r, column: T.buffer_store(segment.sums, value, [target[r], first + column]))

    @inline
    def panel_of_pairs(o, segment, rows, start, place, last, columns, group, panel):
        source = T.alloc_buffer((rows,), "int64")
        target = T.alloc_buffer((rows,), "int64")
        find_rows(o, segment, rows, start + place, last, source, target)
        add_product(rows, columns, group, panel, o.feats, source, target, o.weight, segment, place // tile.rows)

    def over_panels(body):
        """Emit `body(columns, group, panel)` for all panels of all groups."""
        if groups == 1:
            micro.over_panels(lambda columns, panel: body(columns, 0, panel), micro.panels)
            return
        with T.serial(0, groups) as group:
            micro.over_panels(lambda columns, panel: body(columns, group, panel), micro.panels)

    @inline
    def pairs_widened(o, segment, rows, start, place, last, wide):
        source = T.alloc_buffer((rows,), "int64")
        target = T.alloc_buffer((rows,), "int64")
        own = T.alloc_buffer((rows,), "int64")
        find_rows(o, segment, rows, start + place, last, source, target)
        micro.widen(wide, rows, o.feats, source, own, groups)
        over_panels(
            lambda columns, group, panel: add_product(
                rows, columns, group, panel, wide, own, target, o.weight, segment, place // tile.rows
            )
        )

    def multiply_segment(o, segment, start, count, wide):
        """A panel's weights stay in L1 over all pairs, or widened rows over all panels."""
        last = start + count - 1
        if micro.widens:
            micro.over_tiles(count, lambda rows, place: pairs_widened(o, segment, rows, start, place, last, wide))
        else:
            over_panels(
                lambda columns, group, panel: micro.over_tiles(
                    count, lambda rows, place: panel_of_pairs(o, segment, rows, start, place, last, columns, group, panel)
                )
            )

    @inline
    def convolve_block(o, block, first_row, rows, taps, base, sums, wide):
        """out[first_row : first_row + rows, :], summed in the rows of `sums` from `base` on"""
        whole = T.alloc_buffer((1,), "int64")
        share = T.alloc_buffer((1,), "int64")
        whole[0] = o.weight.shape[2] - spec.group_cin % 2
        for row in range(rows):
            each_channel(cout, tile.lanes, lambda c: start_sum(o, first_row + row, base + row, c, sums))
        for tap in range(taps):
            start: T.let = T.Cast("int64", o.segment[block, tap])
            count: T.let = T.Cast("int64", o.segment[block, tap + 1]) - start
            share[0] = (tile.cols - 1) // T.max((count + (tile.rows - 1)) // tile.rows, T.int64(1)) + 1
            multiply_segment(o, Segment(block, tap, base, whole, share, sums), start, count, wide)
        if spec.activation != "none" or not direct:
            for row in range(rows):
                each_channel(cout, tile.lanes, lambda c: finish_sum(o, first_row + row, base + row, c, sums))

    @inline
    def convolve_widened(o, block, first_row, rows, taps, sums):
        wide = T.alloc_buffer((tile.rows, cin), "float32")
        convolve_block(o, block, first_row, rows, taps, T.int64(0), sums, wide)

    @inline
    def convolve_in_scratch(o, block, first_row, rows, taps, block_rows):
        sums = T.alloc_buffer((block_rows, cout), "float32")
        if micro.widens:
            convolve_widened(o, block, first_row, rows, taps, sums)
        else:
            convolve_block(o, block, first_row, rows, taps, T.int64(0), sums, None)

    @inline
    def convolve(o, num_out, blocks, taps, block_rows):
        if micro.llvm_ir is not None:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
        for block in T.parallel(blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring blocks cost alike: deal them out
            first_row: T.let = block * block_rows
            rows: T.let = T.min(block_rows, num_out - first_row)
            if direct:
                convolve_block(o, block, first_row, rows, taps, first_row, o.out, None)
            else:
                convolve_in_scratch(o, block, first_row, rows, taps, block_rows)

    @script.prim_func(s_tir=True)
    def kernel(
        feats_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        residual_: T.handle,
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("gather_gemm", dtype, isa, tile)})
        n, m, blocks, slots, taps, columns, steps = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        feats = match_buffer(feats_, (n, cin), dtype)
        weight = match_buffer(weight_, (taps, groups * micro.panels, steps, tile.cols), micro.weight_dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (m, cout), dtype)
        pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
        pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        out = match_buffer(out_, (m, cout), dtype)
        check_map(map_rows, n, m, columns - 1, taps)
        convolve(Operands(feats, weight, bias, residual, pair_in, pair_out, segment, out), m, blocks, taps, slots // taps)

    return kernel if has_residual else drop_parameters(kernel, "residual")
