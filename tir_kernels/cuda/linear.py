"""The linear layer: products of rows and a weight on tensor cores, see `tensor_core`, with all that may follow them."""

from dataclasses import replace
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters
from ..spec.linear import Linear
from .epilogue import Epilogue
from .gpu import Gpu, kernel_name, stating
from .guards import batch_element, check_batch_index, match_status, reporting
from .launch import left_to_nvcc
from .partial_sums import add_parts, allocate_parts, finish_part, part_of, parts_for
from .tensor_core import VECTOR, Gemm, Operand, Steps, products_of, tile_for
from .vectors import aligned


def shared(spec: Linear, gpu: Gpu) -> Linear:
    """One kernel for all layers with the same results."""
    return replace(spec, out_dtype=spec.out_dtype or spec.dtype, products=products_of(spec))


@cache
def linear(spec: Linear, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Linear`."""
    cin, cout, dtype = spec.cin, spec.cout, spec.dtype
    has_residual, has_gate, has_index = spec.has_residual, spec.has_gate, spec.has_index
    out_dtype = spec.out_dtype or dtype
    gemm = Gemm(tile_for(cout, dtype), dtype, cin, spec.products)
    tile = gemm.tile
    across = -(-cout // tile.cols)

    def multiply(x, weight, n, parts, sums_of_parts, epilogue):
        """Emit the launches."""
        row_tiles = T.max((n + (tile.rows - 1)) // tile.rows, T.int64(1))
        with (
            T.launch_thread("blockIdx.x", row_tiles * across) as block,
            T.launch_thread("blockIdx.y", parts) as part,
            T.launch_thread("threadIdx.x", tile.threads) as thread,
            left_to_nvcc(),
        ):
            shared, sums = gemm.allocate()
            first_row = T.bind(T.Cast("int64", block // across) * tile.rows)
            first_column = T.bind(T.Cast("int32", block % across) * tile.cols)
            begin, end = part_of(gemm.steps, T.Cast("int32", part), T.Cast("int32", parts))
            begin, end = T.bind(begin), T.bind(end)
            fast = T.bind(aligned(x, weight, *epilogue.buffers))

            def source(tap, r):
                return T.if_then_else(first_row + r < n, first_row + r, T.int64(-1))

            steps = Steps(begin, end, lambda i: T.int32(0), source, "int64")
            of_x = Operand(x, lambda row, c: [row, c])
            of_weight = Operand(weight, lambda tap, column, c: [first_column + column, c])
            columns = cout - first_column
            gemm.multiply(shared, sums, thread, steps, of_x, of_weight, columns, fast)

            def store(r, column, values):
                row = T.bind(first_row + T.Cast("int64", r))
                with T.If(row < n), T.Then():
                    at = first_column + column
                    finish_part(sums_of_parts, part, parts, epilogue, values, row, at, columns - column, fast)

            gemm.finish(shared, sums, thread, lambda *at: gemm.again(steps, of_x, of_weight, *at), store, columns)
        add_parts(sums_of_parts, parts, n, cout, epilogue)

    @script.prim_func(s_tir=True)
    def kernel(
        x_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        residual_: T.handle,
        gate_: T.handle,
        batch_index_: T.handle,
        status_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("linear", gemm.of, str(tile))})
        n, batch = T.int64(), T.int64()
        x = match_buffer(x_, (n, cin), dtype)
        weight = match_buffer(weight_, (cout, cin), dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (n, cout), dtype)
        gate = match_buffer(gate_, (batch if has_index else 1, cout), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (n, cout), out_dtype)
        if has_index:
            check_batch_index(status, batch_index, n, batch)
        parts: T.let = parts_for((n + (tile.rows - 1)) // tile.rows * across, T.int64(gemm.steps))
        sums_of_parts = T.meta_var(allocate_parts(parts, n, cout))
        epilogue = T.meta_var(
            Epilogue(
                out,
                spec.activation,
                bias,
                residual if has_residual else None,
                gate if has_gate else None,
                lambda row: T.bind(batch_element(batch_index, row, batch)) if has_index else 0,
                in_vectors=cout % VECTOR == 0,
            )
        )
        # Without batch elements every row was refused, and there is no gate to read.
        rows = T.meta_var(T.if_then_else(batch > 0, n, T.int64(0)) if has_index else n)
        multiply(x, weight, rows, parts, sums_of_parts, epilogue)

    given = {"residual": has_residual, "gate": has_gate, "batch_index": has_index, "status": has_index}
    kernel = stating(drop_parameters(kernel, *(name for name, present in given.items() if not present)), tile.registers)
    return reporting(kernel) if has_index else kernel
