"""Packed GEMM over rows: the linear layer.

The register tile of the sparse convolution, blocked for the caches. A task is a block of rows and a range of columns. It takes
one block of the depth after the other: that part of the rows is copied together (narrow types are widened on the way), the
weights of one panel over it stay in the L1 cache while the rows pass, and sums wait in scratch for the next block. Where the
depth is cut does not depend on tasks or threads, so the bits do not either.
"""

from dataclasses import dataclass, replace
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..layout import WeightLayout
from ..script import drop_parameters, inline
from ..spec.linear import Linear
from . import register_tile
from .caches import L1, L2
from .guards import check_batch_index
from .isa import Isa, kernel_name
from .register_tile import RegisterTile, pair_of_halves
from .vector_math import EMIT

NARROW = 16  # columns of a narrow panel
BLOCK_DEPTH = 3 * L1 // (4 * 4 * NARROW)  # 384: the weights of a narrow panel over it take three quarters of the L1 cache
BLOCK_ROWS = 9 * L2 // (16 * 4 * BLOCK_DEPTH)  # 192, at most; over a block of the depth they take 9/16 of the L2 cache
CHUNK_COLUMNS = 1024  # of one task, at most: they pay for the copy of its rows
TASKS = 32  # of few rows; they are then cut along the columns, so that threads have equal work


def weight_layout(spec: Linear, isa: Isa) -> WeightLayout:
    """[1, panels, steps, cols], see `RegisterTile`."""
    return register_tile.weight_layout((spec.cout, spec.cin), isa, spec.dtype)


def shared(spec: Linear, isa: Isa) -> Linear:
    """One kernel serves any Cin, and all Cout of one register tile."""
    cout = RegisterTile.same_tile(isa, spec.cout, spec.dtype)
    return replace(spec, cin=BLOCK_DEPTH, cout=cout, out_dtype=spec.out_dtype or spec.dtype, products="float")


@dataclass(frozen=True)
class Operands:
    """The buffers of a linear layer; one that the layer lacks is never read."""

    x: tvm.tirx.Buffer  # [N, Cin]
    weight: tvm.tirx.Buffer  # [1, panels, steps, cols]
    bias: tvm.tirx.Buffer  # [Cout]
    residual: tvm.tirx.Buffer  # [N, Cout]
    gate: tvm.tirx.Buffer  # [B, Cout]
    batch_index: tvm.tirx.Buffer  # [N]
    out: tvm.tirx.Buffer  # [N, Cout]


@dataclass(frozen=True)
class Scratch:
    """What a task keeps: its rows over one block of the depth, side by side, and sums that wait for the next block."""

    packed: tvm.tirx.Buffer  # [rows, steps]
    sums: tvm.tirx.Buffer  # [panels, rows, cols]


@cache
def linear(spec: Linear, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Linear`."""
    dtype, has_residual, has_gate, has_index = spec.dtype, spec.has_residual, spec.has_gate, spec.has_index
    out_dtype = spec.out_dtype or dtype
    micro = RegisterTile(isa, BLOCK_DEPTH, spec.cout, dtype)
    cols, lanes = micro.tile.cols, micro.tile.lanes
    block_steps = micro.steps
    most_panels = CHUNK_COLUMNS // cols  # of one task
    tile_rows = micro.tile.rows
    most_rows = -(-BLOCK_ROWS // tile_rows) * tile_rows  # of one task, in whole register tiles
    act = EMIT[spec.activation]

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

    def finished(value, row, column, o):
        """The epilogue of one element."""
        if has_gate:
            value = value * o.gate[T.Cast("int64", o.batch_index[row]) if has_index else 0, column]
        if has_residual:
            value = value + T.Cast("float32", o.residual[row, column])
        return T.Cast(out_dtype, act(value))

    @inline
    def finish(o, first, count, columns, panel, slot, sums):
        """out[first + r, :] of one panel, from its sums"""
        for r in range(count):
            for v in T.unroll(columns // lanes):
                for lane in T.vectorized(lanes):
                    o.out[first + r, panel * cols + v * lanes + lane] = finished(
                        sums[slot, r, v * lanes + lane], first + r, panel * cols + v * lanes + lane, o
                    )
            for column in T.unroll(columns // lanes * lanes, columns):
                o.out[first + r, panel * cols + column] = finished(sums[slot, r, column], first + r, panel * cols + column, o)

    @inline
    def multiply_panel(o, scratch, block, blocks, steps, first, count, columns, panel):
        slot: T.let = panel % most_panels
        step: T.let = block * block_steps
        if block == 0:
            start(o.bias, whole_tiles(count), columns, panel, slot, scratch.sums)
        micro.over_tiles(
            count,
            lambda rows, r: add_products(rows, r, columns, panel, slot, scratch.packed, o.weight, step, steps, scratch.sums),
        )
        if block == blocks - 1:
            finish(o, first, count, columns, panel, slot, scratch.sums)

    @inline
    def multiply_task(o, first, count, first_panel, end_panel, cin, panels):
        packed = T.alloc_buffer((most_rows, block_steps + 1), micro.weight_dtype)  # of an even width, rows share L1 places
        sums = T.alloc_buffer((most_panels, most_rows, cols), "float32")
        blocks: T.let = T.max((cin + (BLOCK_DEPTH - 1)) // BLOCK_DEPTH, T.int64(1))  # the bias is due even without channels
        for block in range(blocks):
            depth: T.let = T.min(T.int64(BLOCK_DEPTH), cin - block * BLOCK_DEPTH)
            steps: T.let = (depth + 1) // 2 if micro.dot else depth
            copy_rows(o.x, first, count, block * BLOCK_DEPTH, depth, packed)
            micro.over_panels(
                lambda columns, panel: multiply_panel(
                    o, Scratch(packed, sums), block, blocks, steps, first, count, columns, panel
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
        # Blocks of about one size, in whole register tiles: not more than `most_rows`.
        block_rows: T.let = whole_tiles((n + row_blocks - 1) // T.max(row_blocks, T.int64(1)))
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
            multiply_task(
                Operands(x, weight, bias, residual, gate, batch_index, out), first, count, first_panel, end_panel, cin, panels
            )

    given = {"residual": has_residual, "gate": has_gate, "batch_index": has_index}
    return drop_parameters(kernel, *(name for name, present in given.items() if not present))
