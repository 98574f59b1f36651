"""Convolution after nearest upsampling: products with a group of taps, made at the coarse sites, are added at the fine ones.

Blocks and order of the sums are those of `gather_gemm`.
"""

from dataclasses import dataclass
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters, inline
from ..spec.upsampled_conv import AddTaps
from ..vector_math import EMIT
from .guards import check_map, check_parent
from .isa import Isa


@dataclass(frozen=True)
class Operands:
    """The buffers of the kernel; a residual that it lacks is never read."""

    y: tvm.tirx.Buffer  # [M, group * Cout]
    bias: tvm.tirx.Buffer  # [Cout]
    residual: tvm.tirx.Buffer  # [N, Cout]
    parent: tvm.tirx.Buffer  # [N]
    pair_in: tvm.tirx.Buffer  # [blocks, slots]
    pair_out: tvm.tirx.Buffer  # [blocks, slots]
    segment: tvm.tirx.Buffer  # [blocks, taps + 1]
    out: tvm.tirx.Buffer  # [N, Cout]


@cache
def add_taps(spec: AddTaps, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `AddTaps`."""
    cout, taps, group, residual_dtype, dtype = spec.cout, spec.taps, spec.group, spec.residual_dtype, spec.dtype
    act = EMIT[spec.activation]
    has_residual = residual_dtype is not None
    direct = dtype == "float32"  # a narrower output is summed in a float32 scratch of the block

    @inline
    def add_tap(o, tap, block, base, sums):
        """sums[base + o, :] += y[parent[i], tap, :] for the pairs (i, o) of one tap of the group in one block"""
        start: T.let = T.Cast("int64", o.segment[block, group.start + tap])
        for i in range(T.Cast("int64", o.segment[block, group.start + tap + 1]) - start):
            source: T.let = T.Cast("int64", o.parent[T.Cast("int64", o.pair_in[block, start + i])])
            target: T.let = base + T.Cast("int64", o.pair_out[block, start + i])
            if source >= 0:
                for c in range(cout):
                    sums[target, c] += o.y[source, tap * cout + c]

    @inline
    def add_block(o, block, first, rows, base, sums):
        """out[first : first + rows, :], summed in the rows of `sums` from `base` on"""
        for row, c in T.grid(rows, cout):
            sums[base + row, c] = o.bias[c] + T.Cast("float32", o.residual[first + row, c]) if has_residual else o.bias[c]
        for tap in range(len(group)):
            add_tap(o, tap, block, base, sums)
        if spec.activation != "none" or not direct:
            for row, c in T.grid(rows, cout):
                o.out[first + row, c] = T.Cast(dtype, act(sums[base + row, c]))

    @inline
    def add_block_in_scratch(o, block, first, rows, block_rows):
        sums = T.alloc_buffer((block_rows, cout), "float32")
        add_block(o, block, first, rows, T.int64(0), sums)

    @inline
    def add_blocks(o, n, blocks, block_rows):
        for block in T.parallel(blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring blocks cost alike: deal them out
            first: T.let = block * block_rows
            rows: T.let = T.min(block_rows, n - first)
            if direct:
                add_block(o, block, first, rows, first, o.out)
            else:
                add_block_in_scratch(o, block, first, rows, block_rows)

    @script.prim_func(s_tir=True)
    def kernel(
        y_: T.handle,
        bias_: T.handle,
        residual_: T.handle,
        parent_: T.handle,
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"add_taps_{dtype}"})
        m, n, blocks, slots, columns = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        y = match_buffer(y_, (m, len(group) * cout), "float32")
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (n, cout), residual_dtype or "float32")
        parent = match_buffer(parent_, (n,), "int32")
        pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
        pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        out = match_buffer(out_, (n, cout), dtype)
        check_map(map_rows, n, n, columns - 1, taps)
        check_parent(parent, n, m)
        add_blocks(Operands(y, bias, residual, parent, pair_in, pair_out, segment, out), n, blocks, slots // taps)

    return kernel if has_residual else drop_parameters(kernel, "residual")
