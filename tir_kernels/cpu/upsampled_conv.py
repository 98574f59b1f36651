"""Convolution after nearest upsampling: the products are made at the coarse sites, this adds them at the fine ones.

    out[o, :] = act(bias + residual[o, :] + sum over taps k, pairs (i, o) of k:  y[parent[i], k, :])
    y[p, k, :] = x[p, :] @ weight[k]

The fine sites of one coarse site hold equal rows, so each product with a tap is needed once for all of them. `y` of all taps
comes from one linear layer with Cout columns a tap; as it is large, taps are cut into groups, and the sums of one group are
the residual of the next. Blocks and order of the sums are those of `gather_gemm`.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_PARENT
from ..script import drop_parameters, inline
from . import gather_gemm, gather_rows
from .kernel_map import check_map
from .vector_math import ACTIVATIONS

COLUMNS = 1024  # of `y` at a time, at most, unless a single tap has more: few enough to stay near, enough to multiply fast


def naive(x, weight, table, parent, bias=None, residual=None, activation="none"):
    """Oracle, in float64. x [M, Cin], weight [K, Cin, Cout], table int32 [K, N], parent int [N], -1: none -> [N, Cout]."""
    return gather_gemm.naive(gather_rows.naive(x, parent), weight, table, bias, residual, activation)


def tap_groups(taps: int, cout: int) -> list[range]:
    """Consecutive taps that are multiplied together: as few groups as `COLUMNS` allows, of sizes as equal as possible."""
    count = -(-taps // max(1, COLUMNS // cout))
    return [range(taps * i // count, taps * (i + 1) // count) for i in range(count)]


@inline
def check_parent(parent, count, rows):
    """Raise for the first of the `count` entries of `parent` that is neither a row, from 0 to rows - 1, nor -1."""
    for i in range(count):
        if T.Or(parent[i] < -1, T.Cast("int64", parent[i]) >= rows):
            T.evaluate(T.call_packed(RAISE_PARENT, i, parent[i], rows))


@cache
def add_taps(
    cout: int,
    taps: int,
    group: range,
    residual_dtype: str | None = None,
    dtype: str = "float32",
    activation: str = "none",
) -> tvm.tirx.PrimFunc:
    """PrimFunc (y, bias, [residual,] parent, pair_in, pair_out, segment, rows, out), for a map of `taps` taps.

    y float32 [M, len(group) * Cout]: the products with the taps of `group`, side by side; bias float32 [Cout]; residual
    `residual_dtype` [N, Cout]; parent int32 [N]: the row of y of each fine site, or -1; the map's arrays as `kernel_map`
    makes them; out `dtype` [N, Cout]. Raises ValueError when the map does not fit or a parent is out of range.
    """
    act = ACTIVATIONS[activation].emit
    has_residual = residual_dtype is not None
    direct = dtype == "float32"  # a narrower output is summed in a float32 scratch of the block

    @inline
    def add_tap(y, tap, parent, pair_in, pair_out, segment, block, base, sums):
        """sums[base + o, :] += y[parent[i], tap, :] for the pairs (i, o) of one tap of the group in one block"""
        start: T.let = T.Cast("int64", segment[block, group.start + tap])
        for i in range(T.Cast("int64", segment[block, group.start + tap + 1]) - start):
            source: T.let = T.Cast("int64", parent[T.Cast("int64", pair_in[block, start + i])])
            target: T.let = base + T.Cast("int64", pair_out[block, start + i])
            if source >= 0:
                for c in range(cout):
                    sums[target, c] += y[source, tap * cout + c]

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
        block_rows: T.let = slots // taps
        for block in T.parallel(blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring blocks cost alike: deal them out
            first: T.let = block * block_rows
            rows: T.let = T.min(block_rows, n - first)
            base: T.let = first if direct else T.int64(0)
            sums = out if direct else T.alloc_buffer((block_rows, cout), "float32")
            for row, c in T.grid(rows, cout):
                sums[base + row, c] = bias[c] + T.Cast("float32", residual[first + row, c]) if has_residual else bias[c]
            for tap in range(len(group)):
                add_tap(y, tap, parent, pair_in, pair_out, segment, block, base, sums)
            if activation != "none" or not direct:
                for row, c in T.grid(rows, cout):
                    out[first + row, c] = T.Cast(dtype, act(sums[base + row, c]))

    return kernel if has_residual else drop_parameters(kernel, "residual")
