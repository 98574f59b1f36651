"""Gather–GEMM–scatter over a kernel map: the sparse convolution.

    out[o, :] = act(bias + residual[o, :] + sum over taps k, pairs (i, o) of k:  feats[i, :] @ weight[k])

The output rows are cut into blocks. A block belongs to one thread, which walks its taps in order; for each tap, groups
of pairs times one column panel accumulate in registers and add into the block's rows, which stay in the L2 cache. No two
threads add into a row and the order of every sum is fixed, so the bits do not depend on threads, tiles or block size.
Rows are read through the map, nothing is gathered first.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from . import script
from .activation import ACTIVATIONS
from .buffers import match_buffer
from .isa import Isa, kernel_name
from .kernel_map import check_map
from .microkernel import RegisterTile
from .script import inline


def naive(feats, weight, table, bias=None, residual=None, activation="none"):
    """Oracle, in float64. feats [N, Cin], weight [K, Cin, Cout], table int32 [K, M] (-1: no input) -> [M, Cout]."""
    out = np.zeros((table.shape[1], weight.shape[2]))
    if bias is not None:
        out += bias.astype(np.float64)
    if residual is not None:
        out += residual.astype(np.float64)
    for tap, rows in zip(weight.astype(np.float64), table, strict=True):
        hit = rows >= 0
        out[hit] += feats[rows[hit]].astype(np.float64) @ tap
    return ACTIVATIONS[activation].naive(out)


@cache
def gather_gemm(
    cin: int, cout: int, isa: Isa, dtype: str = "float32", has_residual: bool = False, activation: str = "none"
) -> tvm.tirx.PrimFunc:
    """PrimFunc (feats, weight, bias, [residual,] pair_in, pair_out, segment, rows, out).

    feats `dtype` [N, Cin]; weight as `microkernel.pack_weight` makes it; bias float32 [Cout]; residual, out `dtype`
    [M, Cout]; the map's arrays as `kernel_map` makes them. Raises ValueError when the map does not fit the features.
    """
    micro = RegisterTile(isa, cin, cout, dtype)
    tile = micro.tile
    act = ACTIVATIONS[activation].emit
    direct = dtype == "float32"  # a narrower output is summed in a float32 scratch of the block

    @inline
    def find_rows(rows, first, last, pair_in, pair_out, block, base, source, target):
        """The rows of the pairs from `first` on. Past the `last` one they are its own again, which then is stored twice"""
        for r in T.unroll(rows):
            source[r] = T.Cast("int64", pair_in[block, T.min(first + r, last)])
            target[r] = T.Cast("int64", pair_out[block, T.min(first + r, last)]) + base

    @inline
    def add_product(rows, columns, panel, feats, source, target, weight, tap, sums):
        acc = micro.accumulators(rows, columns)
        acc.load(lambda r, column: sums[target[r], panel * tile.cols + column])
        micro.multiply(acc, feats, source, weight, tap, panel)
        acc.store(lambda value, r, column: T.buffer_store(sums, value, [target[r], panel * tile.cols + column]))

    @inline
    def panel_of_pairs(rows, first, last, columns, panel, feats, weight, pair_in, pair_out, block, tap, base, sums):
        source = T.alloc_buffer((rows,), "int64")
        target = T.alloc_buffer((rows,), "int64")
        find_rows(rows, first, last, pair_in, pair_out, block, base, source, target)
        add_product(rows, columns, panel, feats, source, target, weight, tap, sums)

    @inline
    def pairs_widened(rows, first, last, feats, weight, pair_in, pair_out, block, tap, base, sums, wide):
        source = T.alloc_buffer((rows,), "int64")
        target = T.alloc_buffer((rows,), "int64")
        own = T.alloc_buffer((rows,), "int64")
        find_rows(rows, first, last, pair_in, pair_out, block, base, source, target)
        micro.widen(wide, rows, feats, source, own)
        micro.over_panels(
            lambda columns, panel: add_product(rows, columns, panel, wide, own, target, weight, tap, sums), micro.panels
        )

    def multiply_segment(start, count, feats, weight, pair_in, pair_out, block, tap, base, sums, wide):
        """All pairs of one (block, tap). A panel's weights stay in L1 over all pairs, or widened rows over all panels."""
        where = (feats, weight, pair_in, pair_out, block, tap, base, sums)
        last = start + count - 1
        if micro.widens:
            micro.over_tiles(count, lambda rows, first: pairs_widened(rows, start + first, last, *where, wide))
        else:
            micro.over_panels(
                lambda columns, panel: micro.over_tiles(
                    count, lambda rows, first: panel_of_pairs(rows, start + first, last, columns, panel, *where)
                ),
                micro.panels,
            )

    @inline
    def convolve(feats, weight, bias, residual, pair_in, pair_out, segment, out, num_out, blocks, taps, block_rows):
        if micro.llvm_ir is not None:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
        for block in T.parallel(blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring blocks cost alike: deal them out
            first_row: T.let = block * block_rows
            rows: T.let = T.min(block_rows, num_out - first_row)
            base: T.let = first_row if direct else T.int64(0)
            sums = out if direct else T.alloc_buffer((block_rows, cout), "float32")
            wide = T.alloc_buffer((tile.rows, cin), "float32") if micro.widens else feats  # unused
            for row, c in T.grid(rows, cout):
                sums[base + row, c] = bias[c] + T.Cast("float32", residual[first_row + row, c]) if has_residual else bias[c]
            for tap in range(taps):
                start: T.let = T.Cast("int64", segment[block, tap])
                count: T.let = T.Cast("int64", segment[block, tap + 1]) - start
                multiply_segment(start, count, feats, weight, pair_in, pair_out, block, tap, base, sums, wide)
            if activation != "none" or not direct:
                for row, c in T.grid(rows, cout):
                    out[first_row + row, c] = T.Cast(dtype, act(sums[base + row, c]))

    name = kernel_name("gather_gemm", dtype, isa, tile)
    if has_residual:

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
            T.func_attr({"tirx.noalias": True, "global_symbol": name})
            n, m, blocks, slots, taps, columns = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
            feats = match_buffer(feats_, (n, cin), dtype)
            weight = match_buffer(weight_, (taps, micro.panels, micro.steps, tile.cols), micro.weight_dtype)
            bias = match_buffer(bias_, (cout,), "float32")
            residual = match_buffer(residual_, (m, cout), dtype)
            pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
            pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
            segment = match_buffer(segment_, (blocks, columns), "int32")
            out = match_buffer(out_, (m, cout), dtype)
            check_map(map_rows, n, m, columns - 1, taps)
            convolve(feats, weight, bias, residual, pair_in, pair_out, segment, out, m, blocks, taps, slots // taps)

        return kernel

    @script.prim_func(s_tir=True)
    def kernel(
        feats_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        n, m, blocks, slots, taps, columns = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        feats = match_buffer(feats_, (n, cin), dtype)
        weight = match_buffer(weight_, (taps, micro.panels, micro.steps, tile.cols), micro.weight_dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
        pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        out = match_buffer(out_, (m, cout), dtype)
        check_map(map_rows, n, m, columns - 1, taps)
        convolve(feats, weight, bias, None, pair_in, pair_out, segment, out, m, blocks, taps, slots // taps)

    return kernel
