"""Pooling through a kernel map: sum, mean or maximum of the input rows that meet an output row.

    out[o, :] = reduction over taps k, pairs (i, o) of k, of x[i, :]

A block of output rows is one thread's, which walks its taps in order, so the order of every sum is fixed. Sums are
float32.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from .kernel_map import check_map

MODES = ("sum", "mean", "max")


@dataclass(frozen=True)
class Reduction:
    """How the rows that meet in one output row become one; a row that meets none is 0.

    `count_bias` is added to the number of rows that a mean divides by. TRELLIS-like models take 1: they average into a
    zero buffer that is itself counted. `max_from_zero`: a maximum starts from 0, as in spconv's CPU pooling.
    """

    mode: str
    count_bias: int = 0
    max_from_zero: bool = False

    def start(self):
        """The float32 value that a reduction begins with, as a TIR expression."""
        return T.min_value("float32") if self.mode == "max" and not self.max_from_zero else T.float32(0)

    def add(self, value, row):
        """One more row, from TIR expressions."""
        return T.max(value, row) if self.mode == "max" else value + row

    def finish(self, value, count):
        """The result, from the reduced value and the int32 number of rows in it."""
        if self.mode == "mean":
            value = value / T.Cast("float32", T.max(count + self.count_bias, 1))
        return T.if_then_else(count > 0, value, T.float32(0))

    def naive(self, rows):
        """Oracle, in float64: rows [P, C] -> [C]."""
        if len(rows) == 0:
            return np.zeros(rows.shape[1])
        rows = rows.astype(np.float64)
        if self.mode == "max":
            return np.maximum(rows.max(0), 0) if self.max_from_zero else rows.max(0)
        return rows.sum(0) / (len(rows) + self.count_bias if self.mode == "mean" else 1)


def naive(x, table, reduction: Reduction):
    """Oracle, in float64. x [N, C], table int32 [taps, M] (-1: no input) -> [M, C]."""
    rows = [reduction.naive(x[column[column >= 0]]) for column in table.T]
    return np.stack(rows) if rows else np.zeros((0, x.shape[1]))


@cache
def pool(channels: int, reduction: Reduction, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """PrimFunc (x, pair_in, pair_out, segment, rows, out).

    x `dtype` [N, C]; the map's arrays as `kernel_map` makes them; out `dtype` [M, C]. Raises ValueError when the map
    does not fit N and M.
    """
    direct = dtype == "float32"  # a narrower output is reduced in a float32 scratch of the block

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, pair_in_: T.handle, pair_out_: T.handle, segment_: T.handle, map_rows_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"pool_{reduction.mode}_{dtype}"})
        n, m, blocks, slots, columns = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
        pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        map_rows = match_buffer(map_rows_, (2,), "int64")
        out = match_buffer(out_, (m, channels), dtype)
        taps: T.let = columns - 1
        check_map(map_rows, n, m, taps, taps)
        for block in T.parallel(blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring blocks cost alike: deal them out
            first: T.let = block * (slots // taps)
            rows: T.let = T.min(slots // taps, m - first)
            base: T.let = first if direct else T.int64(0)
            counts = T.alloc_buffer((slots // (columns - 1),), "int32")
            sums = out if direct else T.alloc_buffer((slots // (columns - 1), channels), "float32")
            for row in range(rows):
                counts[row] = T.int32(0)
                for c in range(channels):
                    sums[base + row, c] = reduction.start()
            for pair in range(T.Cast("int64", segment[block, taps])):
                source: T.let = T.Cast("int64", pair_in[block, pair])
                target: T.let = T.Cast("int64", pair_out[block, pair])
                counts[target] += 1
                for c in range(channels):
                    sums[base + target, c] = reduction.add(sums[base + target, c], T.Cast("float32", x[source, c]))
            for row in range(rows):
                for c in range(channels):
                    out[first + row, c] = T.Cast(dtype, reduction.finish(sums[base + row, c], counts[row]))

    return kernel
