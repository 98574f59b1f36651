"""Packed GEMM over rows: the linear layer, `out = act(x @ weight.T + bias + residual)`.

The same register tile as the sparse convolution, with rows that follow each other. A block of rows is one thread's.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .activation import ACTIVATIONS
from .buffers import match_buffer
from .isa import Isa, kernel_name
from .microkernel import RegisterTile
from .script import inline

BLOCK_ROWS = 96  # a multiple of every tile's rows that does not leave one of a few threads without work


def naive(x, weight, bias=None, residual=None, activation="none"):
    """Oracle, in float64. x [N, Cin], weight [Cout, Cin], bias [Cout], residual [N, Cout] -> [N, Cout]."""
    out = x.astype(np.float64) @ weight.astype(np.float64).T
    for addend in (bias, residual):
        if addend is not None:
            out = out + addend.astype(np.float64)
    return ACTIVATIONS[activation].naive(out)


@cache
def linear(
    cin: int, cout: int, isa: Isa, dtype: str = "float32", has_residual: bool = False, activation: str = "none"
) -> tvm.tirx.PrimFunc:
    """PrimFunc (x, weight, bias, [residual,] out).

    x `dtype` [N, Cin]; weight [1, panels, steps, cols] as `microkernel.pack_weight` makes it; bias float32 [Cout];
    residual, out `dtype` [N, Cout]. Sums are float32 whatever the storage type.
    """
    micro = RegisterTile(isa, cin, cout, dtype)
    tile = micro.tile
    act = ACTIVATIONS[activation].emit

    @inline
    def product(rows, columns, panel, x, source, target, weight, bias, residual, out):
        acc = T.alloc_buffer((rows, tile.cols), "float32")  # registers
        micro.load(acc, rows, columns, target, panel * tile.cols, lambda row, column: bias[column])
        micro.multiply(acc, rows, columns, x, source, weight, T.int64(0), panel)
        micro.store(
            acc,
            rows,
            columns,
            out,
            target,
            panel * tile.cols,
            lambda value, row, column: T.Cast(
                dtype, act(value + T.Cast("float32", residual[row, column]) if has_residual else value)
            ),
        )

    @inline
    def panel_of_rows(rows, first, columns, panel, x, weight, bias, residual, out):
        target = T.alloc_buffer((rows,), "int64")
        for r in T.unroll(rows):
            target[r] = first + r
        product(rows, columns, panel, x, target, target, weight, bias, residual, out)

    @inline
    def rows_widened(rows, first, x, weight, bias, residual, out, wide):
        target = T.alloc_buffer((rows,), "int64")
        own = T.alloc_buffer((rows,), "int64")
        for r in T.unroll(rows):
            target[r] = first + r
        micro.widen(wide, rows, x, target, own)
        micro.over_panels(lambda columns, panel: product(rows, columns, panel, wide, own, target, weight, bias, residual, out))

    def multiply_block(first, count, x, weight, bias, residual, out, wide):
        if micro.widens:
            micro.over_rows(count, lambda rows, r: rows_widened(rows, first + r, x, weight, bias, residual, out, wide))
        else:
            micro.over_panels(
                lambda columns, panel: micro.over_rows(
                    count,
                    lambda rows, r: panel_of_rows(rows, first + r, columns, panel, x, weight, bias, residual, out),
                )
            )

    @inline
    def body(x, weight, bias, residual, out, n):
        if micro.llvm_ir is not None:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
        for block in T.parallel((n + BLOCK_ROWS - 1) // BLOCK_ROWS):
            wide = T.alloc_buffer((tile.rows, cin), "float32") if micro.widens else x  # unused
            first: T.let = block * BLOCK_ROWS
            count: T.let = T.min(T.int64(BLOCK_ROWS), n - first)
            multiply_block(first, count, x, weight, bias, residual, out, wide)

    name = kernel_name("linear", dtype, isa, tile)
    if has_residual:

        @T.prim_func(s_tir=True)
        def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, residual_: T.handle, out_: T.handle):
            T.func_attr({"tirx.noalias": True, "global_symbol": name})
            n = T.int64()
            x = match_buffer(x_, (n, cin), dtype)
            weight = match_buffer(weight_, (1, micro.panels, micro.steps, tile.cols), micro.weight_dtype)
            bias = match_buffer(bias_, (cout,), "float32")
            residual = match_buffer(residual_, (n, cout), dtype)
            out = match_buffer(out_, (n, cout), dtype)
            body(x, weight, bias, residual, out, n)

        return kernel

    @T.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        n = T.int64()
        x = match_buffer(x_, (n, cin), dtype)
        weight = match_buffer(weight_, (1, micro.panels, micro.steps, tile.cols), micro.weight_dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        out = match_buffer(out_, (n, cout), dtype)
        body(x, weight, bias, None, out, n)

    return kernel
