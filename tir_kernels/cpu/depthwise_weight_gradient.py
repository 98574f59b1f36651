"""The gradient of a depthwise convolution's weight: groups of one input channel, each with any number of output channels.

There is no matrix to multiply: for every pair of a tap, a row of the gradient times the row of features. A task is a few taps
and a panel of output channels, whose sums stay in registers over the pairs of a block; those of the blocks are added in order.
Where pairs are cut depends on the map alone, so the bits do not depend on tasks or threads.
"""

from dataclasses import replace
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
from .weight_gradient import RUN, Operands


def refuses(spec: SparseConvWeightGradient, isa: Isa) -> str | None:
    """Why matrix products serve better."""
    if spec.groups == 1 or spec.group_cin > 1:
        return f"groups: expected groups of 1 input channel, given {spec.groups} of {spec.group_cin}"
    return None


@cache
def depthwise_weight_gradient(spec: SparseConvWeightGradient, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SparseConvWeightGradient`."""
    cin, cout, times, dtype = spec.cin, spec.cout, spec.group_cout, spec.dtype
    micro = RegisterTile(isa, 1, cout, "float32")
    cols, lanes = micro.tile.cols, micro.tile.lanes

    name = kernel_name("depthwise_weight_gradient", dtype, isa, replace(micro.tile, rows=1))

    def channel(first, column, columns):
        """The output channel of a column of a panel; that of the last one again for lanes past it."""
        return first + (column if columns % lanes == 0 else T.min(column, columns - 1))

    def add_pair(o, acc, source, target, first, columns):
        """Emit: acc[0, :] += gradient[target, channels] * x[source, channels of the input]"""

        @inline
        def add(o, part, source, target, first):
            for v in T.unroll(acc.vectors):
                for lane in T.vectorized(lanes):
                    part[0, v * lanes + lane] += T.Cast(
                        "float32", o.gradient[target, channel(first, v * lanes + lane, columns)]
                    ) * T.Cast("float32", o.x[source, channel(first, v * lanes + lane, columns) // times])

        (_, _, part), *_ = acc.parts
        add(o, part, source, target, first)

    @inline
    def sum_block(o, sums, slot, block, tap, first, columns, block_rows):
        """sums[slot, :] += the products of the pairs of one tap in one block"""
        start: T.let = T.Cast("int64", o.segment[block, tap])
        acc = micro.accumulators(1, columns)
        acc.load(lambda r, column: T.float32(0))
        for pair in range(T.Cast("int64", o.segment[block, tap + 1]) - start):
            source: T.let = T.Cast("int64", o.pair_in[block, start + pair])
            target: T.let = T.Cast("int64", o.pair_out[block, start + pair]) + block * block_rows
            add_pair(o, acc, source, target, first, columns)
        acc.store(lambda value, r, column: T.buffer_store(sums, sums[slot, column] + value, [slot, column]))

    @inline
    def sum_panel(o, sums, first_tap, taps, columns, panel, blocks, block_rows):
        for slot, column in T.grid(RUN, cols):
            sums[slot, column] = T.float32(0)
        for block in range(blocks):
            for slot in range(taps):
                sum_block(o, sums, slot, block, first_tap + slot, panel * cols, columns, block_rows)
        for slot in range(taps):
            for column in range(columns):
                o.out[panel * cols + column, first_tap + slot, 0] = sums[slot, column]

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
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        n, m, blocks, slots, columns = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        kx, ky, kz = T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, cin), dtype)
        gradient = match_buffer(gradient_, (m, cout), dtype)
        pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
        pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        out = match_buffer(out_, (cout, kx, ky, kz, 1), "float32")
        flat = T.decl_buffer((cout, kx * ky * kz, 1), "float32", data=out.data)
        taps: T.let = columns - 1
        check_map(map_rows, n, m, taps, kx * ky * kz)
        for task in T.parallel((taps + (RUN - 1)) // RUN * micro.panels):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # taps have unlike numbers of pairs: deal them out
            sums = T.alloc_buffer((RUN, cols), "float32")
            first_tap: T.let = task // micro.panels * RUN
            panel: T.let = task % micro.panels
            o = T.meta_var(Operands(x, gradient, pair_in, pair_out, segment, flat))
            micro.over_panels(
                lambda columns, own: sum_panel(
                    *(o, sums, first_tap, T.min(T.int64(RUN), taps - first_tap), columns, own, blocks, slots // taps)
                ),
                micro.panels,
                panel,
                panel + 1,
            )

    return kernel
