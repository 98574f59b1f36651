"""Packed GEMM over rows: the linear layer, `out = act(gate[b] * (x @ weight.T + bias) + residual)`.

The register tile of the sparse convolution, blocked for the caches. A task is a block of rows and a range of columns. It
takes one block of the depth after the other: that part of the rows is copied together (bfloat16 is widened on the way), the
weights of one panel over it stay in the L1 cache while the rows pass, and sums wait in scratch for the next block. Where the
depth is cut does not depend on tasks or threads, so the bits do not either.
"""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from . import script
from .activation import ACTIVATIONS
from .buffers import match_buffer
from .isa import Isa, kernel_name
from .layer_norm import check_batch_index
from .microkernel import RegisterTile, pair_of_halves
from .script import drop_parameters, inline

BLOCK_ROWS = 192  # at most; over a block of the depth they take three fifths of a common L2 cache
BLOCK_DEPTH = 384  # the weights of a narrow panel over it take three quarters of a common L1 cache
CHUNK_COLUMNS = 1024  # of one task, at most: they pay for the copy of its rows
TASKS = 32  # of few rows; they are then cut along the columns, so that threads have equal work


def naive(x, weight, bias=None, residual=None, activation="none", gate=None, batch_index=None):
    """Oracle, in float64. x [N, Cin], weight [Cout, Cin], bias [Cout], residual [N, Cout], gate [B, Cout] -> [N, Cout]."""
    out = x.astype(np.float64) @ weight.astype(np.float64).T
    if bias is not None:
        out = out + bias.astype(np.float64)
    if gate is not None:
        out = out * gate.astype(np.float64)[np.zeros(len(x), int) if batch_index is None else batch_index]
    if residual is not None:
        out = out + residual.astype(np.float64)
    return ACTIVATIONS[activation].naive(out)


@cache
def linear(
    width: int,
    isa: Isa,
    dtype: str = "float32",
    has_residual: bool = False,
    activation: str = "none",
    has_gate: bool = False,
    has_index: bool = False,
    out_dtype: str | None = None,
) -> tvm.tirx.PrimFunc:
    """PrimFunc (x, weight, bias, [residual,] [gate,] [batch_index,] out) for any Cin and all Cout of the same tile as `width`,
    see `RegisterTile.same_tile`.

    x `dtype` [N, Cin]; weight [1, panels, steps, cols] as `microkernel.pack_weight` makes it; bias float32 [Cout];
    residual `dtype` [N, Cout]; gate float32 [B, Cout], of which a row takes the first, or that of batch_index int32 [N]:
    ValueError for an index outside of 0 .. B - 1; out [N, Cout] of `out_dtype`, by default `dtype`. Sums are float32.
    """
    out_dtype = out_dtype or dtype
    micro = RegisterTile(isa, BLOCK_DEPTH, width, dtype)
    cols, lanes = micro.tile.cols, micro.tile.lanes
    block_steps = micro.steps
    most_panels = CHUNK_COLUMNS // cols  # of one task
    tile_rows = micro.tile.rows
    most_rows = -(-BLOCK_ROWS // tile_rows) * tile_rows  # of one task, in whole register tiles
    act = ACTIVATIONS[activation].emit

    def whole_tiles(count):
        """The rows of the register tiles that cover `count` rows."""
        return (count + (tile_rows - 1)) // tile_rows * tile_rows

    @inline
    def copy_rows(x, first, count, depth, here, packed):
        """packed[r, :] = x[first + r, depth : depth + here], or pairs of them; then zeros to the end of a register tile"""
        for r in range(count):
            if micro.dot:
                for c in range(here // 2):
                    packed[r, c] = pair_of_halves(x[first + r, depth + 2 * c], x[first + r, depth + 2 * c + 1])
                if here % 2 > 0:
                    packed[r, here // 2] = T.Cast("int32", T.reinterpret("uint16", x[first + r, depth + here - 1]))
            else:
                for c in range(here):
                    packed[r, c] = T.Cast("float32", x[first + r, depth + c])
        for r in range(whole_tiles(count) - count):
            for c in range(block_steps):
                packed[count + r, c] = T.Cast(micro.weight_dtype, 0)

    @inline
    def start(bias, count, columns, panel, slot, sums):
        """sums[slot, r, :] = bias"""
        for r in range(count):
            for column in T.unroll(columns):
                sums[slot, r, column] = bias[panel * cols + column]

    @inline
    def add_products(rows, first, columns, panel, slot, packed, weight, step, steps, sums):
        """sums[slot, first : first + rows, :] += packed @ weight over one block of the depth"""
        acc = micro.accumulators(rows, (columns + lanes - 1) // lanes * lanes)
        acc.load(lambda r, column: sums[slot, first + r, column])
        micro.multiply_packed(acc, packed, first, weight, panel, step, steps)
        acc.store(lambda value, r, column: T.buffer_store(sums, value, [slot, first + r, column]))

    def finished(value, row, column, residual, gate, batch_index):
        """The epilogue of one element."""
        if has_gate:
            value = value * gate[T.Cast("int64", batch_index[row]) if has_index else 0, column]
        if has_residual:
            value = value + T.Cast("float32", residual[row, column])
        return T.Cast(out_dtype, act(value))

    @inline
    def finish(first, count, columns, panel, slot, sums, residual, gate, batch_index, out):
        """out[first + r, :] of one panel, from its sums"""
        for r in range(count):
            for v in T.unroll(columns // lanes):
                for lane in T.vectorized(lanes):
                    out[first + r, panel * cols + v * lanes + lane] = finished(
                        sums[slot, r, v * lanes + lane], first + r, panel * cols + v * lanes + lane, residual, gate, batch_index
                    )
            for column in T.unroll(columns // lanes * lanes, columns):
                out[first + r, panel * cols + column] = finished(
                    sums[slot, r, column], first + r, panel * cols + column, residual, gate, batch_index
                )

    @inline
    def multiply_panel(
        block, blocks, steps, first, count, columns, panel, slot, packed, weight, bias, residual, gate, batch_index, sums, out
    ):
        step: T.let = block * block_steps
        if block == 0:
            start(bias, whole_tiles(count), columns, panel, slot, sums)
        micro.over_tiles(count, lambda rows, r: add_products(rows, r, columns, panel, slot, packed, weight, step, steps, sums))
        if block == blocks - 1:
            finish(first, count, columns, panel, slot, sums, residual, gate, batch_index, out)

    @inline
    def multiply_task(first, count, first_panel, end_panel, cin, panels, x, weight, bias, residual, gate, batch_index, out):
        packed = T.alloc_buffer((most_rows, block_steps + 1), micro.weight_dtype)  # of an even width, rows share L1 places
        sums = T.alloc_buffer((most_panels, most_rows, cols), "float32")
        blocks: T.let = (cin + (BLOCK_DEPTH - 1)) // BLOCK_DEPTH
        for block in range(blocks):
            depth: T.let = T.min(T.int64(BLOCK_DEPTH), cin - block * BLOCK_DEPTH)
            copy_rows(x, first, count, block * BLOCK_DEPTH, depth, packed)
            micro.over_panels(
                lambda columns, panel: multiply_panel(
                    block,
                    blocks,
                    (depth + 1) // 2 if micro.dot else depth,
                    first,
                    count,
                    columns,
                    panel,
                    panel % most_panels,
                    packed,
                    weight,
                    bias,
                    residual,
                    gate,
                    batch_index,
                    sums,
                    out,
                ),
                panels,
                first_panel,
                end_panel,
            )

    @script.prim_func(s_tir=True)
    def kernel(
        x_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        residual_: T.handle,
        gate_: T.handle,
        batch_index_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("linear", dtype, isa, micro.tile)})
        n, cin, cout, panels, steps, batch = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, cin), dtype)
        weight = match_buffer(weight_, (1, panels, steps, cols), micro.weight_dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (n, cout), dtype)
        gate = match_buffer(gate_, (batch if has_index else 1, cout), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        out = match_buffer(out_, (n, cout), out_dtype)
        if micro.llvm_ir is not None:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
        if has_index:
            check_batch_index(batch_index, n, batch)
        row_blocks: T.let = (n + (BLOCK_ROWS - 1)) // BLOCK_ROWS
        block_rows: T.let = ((n + row_blocks - 1) // T.max(row_blocks, T.int64(1)) + 11) // 12 * 12  # blocks of about one size
        chunks: T.let = T.min(
            panels,
            T.max((TASKS + row_blocks - 1) // T.max(row_blocks, T.int64(1)), (panels + (most_panels - 1)) // most_panels),
        )
        for task in T.parallel(row_blocks * chunks):
            part = T.alloc_buffer((4,), "int64")  # in memory, as TVM simplifies such quotients wherever they are used
            part[0] = task // chunks * block_rows
            part[1] = T.max(T.min(block_rows, n - part[0]), T.int64(0))
            part[2] = task % chunks * panels // chunks
            part[3] = (task % chunks + 1) * panels // chunks
            first: T.let = part[0]
            count: T.let = part[1]
            first_panel: T.let = part[2]
            end_panel: T.let = part[3]
            multiply_task(first, count, first_panel, end_panel, cin, panels, x, weight, bias, residual, gate, batch_index, out)

    given = {"residual": has_residual, "gate": has_gate, "batch_index": has_index}
    return drop_parameters(kernel, *(name for name, present in given.items() if not present))
