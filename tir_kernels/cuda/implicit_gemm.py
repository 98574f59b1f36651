"""Sparse convolution as products on tensor cores, see `tensor_core`: rows are gathered through the map while they are copied.

A block of threads owns a tile of slots and columns, and walks the taps that any of its slots meets. With groups of channels it
is as many products side by side, each with its own part of the rows.
"""

from dataclasses import replace
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters
from ..spec.sparse_conv import SparseConv
from .epilogue import Epilogue
from .gpu import Gpu, kernel_name, stating
from .guards import match_status, reporting
from .launch import left_to_nvcc
from .map_sums import Fit, TileOfSlots, fill_unfit
from .neighbour_table import TILE_ROWS, Table, match_table
from .partial_sums import add_parts, allocate_parts, finish_part, part_of, parts_for
from .tensor_core import VECTOR, Gemm, Operand, Steps, products_of, tile_for
from .vectors import aligned


def shared(spec: SparseConv, gpu: Gpu) -> SparseConv:
    """One kernel serves kernels of all sizes."""
    return replace(spec, kernel=(1, 1, 1), products=products_of(spec))


@cache
def implicit_gemm(spec: SparseConv, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `SparseConv`."""
    cin, cout, groups, dtype, has_residual = spec.cin, spec.cout, spec.groups, spec.dtype, spec.has_residual
    depth, width = spec.group_cin, spec.group_cout
    gemm = Gemm(tile_for(width, dtype), dtype, depth, spec.products)
    tile = gemm.tile
    assert tile.rows == TILE_ROWS
    across_group = -(-width // tile.cols)
    across = groups * across_group  # tiles of columns

    def convolve(x, weight, table: Table, fit: Fit, status, epilogue: Epilogue):
        """Emit the launches."""
        tiles = table.groups * table.tiles_of_group
        splits = T.bind(parts_for(tiles * across, table.taps * gemm.steps))
        parts = T.bind(table.groups * splits)
        sums_of_parts = allocate_parts(parts, fit.rows_out, cout)
        with (
            T.launch_thread("blockIdx.x", tiles * across) as block,
            T.launch_thread("blockIdx.y", splits) as split,
            T.launch_thread("threadIdx.x", tile.threads) as thread,
            left_to_nvcc(),
        ):
            fits = T.bind(fit.holds(table))
            fit.check(status, table, T.And(T.And(block == 0, split == 0), thread == 0))
            shared, sums = gemm.allocate()
            slots = TileOfSlots.of(table, T.Cast("int32", block // across), fits)
            panel = T.Cast("int32", block % across)
            group, first = T.bind(panel // across_group), T.bind(panel % across_group * tile.cols)  # column of the group
            begin, end = part_of(slots.live * gemm.steps, T.Cast("int32", split), T.Cast("int32", splits))
            steps = Steps(T.bind(begin), T.bind(end), slots.tap, slots.source)
            of_x = Operand(x, lambda row, c: [T.Cast("int64", row), group * depth + c])
            of_weight = Operand(weight, lambda tap, column, c: [group * width + first + column, tap, c])
            columns = width - first
            fast = T.bind(aligned(x, weight, *epilogue.buffers))
            gemm.multiply(shared, sums, thread, steps, of_x, of_weight, columns, fast)
            part = T.Cast("int64", slots.group) * splits + T.Cast("int64", split)

            def store(r, column, values):
                row = T.bind(T.Cast("int64", slots.row(r)))
                at = group * width + first + column
                with T.If(T.And(row >= 0, fits)), T.Then():
                    finish_part(sums_of_parts, part, parts, epilogue, values, row, at, columns - column, fast)

            gemm.finish(shared, sums, thread, lambda *at: gemm.again(steps, of_x, of_weight, *at), store, columns)
            fill_unfit(epilogue.out, block, tiles * across, thread, tile.threads, fits)
        add_parts(sums_of_parts, parts, fit.rows_out, cout, epilogue, fit.holds(table))

    @script.prim_func(s_tir=True)
    def kernel(
        feats_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        residual_: T.handle,
        neighbours_: T.handle,
        order_: T.handle,
        tiles_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        status_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("implicit_gemm", gemm.of, str(tile))})
        n, m, kx, ky, kz = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        feats = match_buffer(feats_, (n, cin), dtype)
        weight = match_buffer(weight_, (cout, kx, ky, kz, depth), dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (m, cout), dtype)
        table = T.meta_var(match_table(neighbours_, order_, tiles_))
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (m, cout), dtype)
        by_tap = T.decl_buffer((cout, kx * ky * kz, depth), dtype, data=weight.data)
        epilogue = T.meta_var(
            Epilogue(out, spec.activation, bias, residual if has_residual else None, in_vectors=width % VECTOR == 0)
        )
        fit = T.meta_var(Fit(map_rows, n, m, kx * ky * kz))
        convolve(feats, by_tap, table, fit, status, epilogue)

    return stating(reporting(kernel if has_residual else drop_parameters(kernel, "residual")), tile.registers)
