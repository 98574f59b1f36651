"""The sparse convolution with integer products; `spec.int8_sparse_conv` says what it computes.

Rows are rotated and rounded once, into scratch of a quarter or half of their bytes, however many pairs read them. Then blocks
of output rows, their taps in order and the pairs of a tap are walked as in `gather_gemm`: a register tile of int32 sums takes
the whole depth of a group of pairs, four or two channels to a step, and is scaled into the float32 sums of the block's rows.

A panel of the packed weight, of one tap, begins with what its columns need besides: the header.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import prod

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..layout import WeightLayout
from ..script import drop_parameters, inline
from ..spec.int8_linear import GROUP, rotate, signs
from ..spec.sparse_conv import SparseConv
from ..vector_math import EMIT
from . import int8_linear
from .guards import check_map
from .int8_linear import TOGETHER, Form, Rounding, name_of, tile_of
from .isa import Isa
from .register_tile import Accumulators
from .rows import each_channel

# Rows of a panel's header, [HEADER, cols] int32 before the steps
START = 0  # what sums begin with: less what an offset of the activations adds to them
SCALE = 1  # 64 s of each column, the bits of a float32
HEADER = SCALE + 1


def refuses(spec: SparseConv, isa: Isa) -> str | None:
    """Why an integer instruction does not serve."""
    if spec.groups != 1:
        return f"groups: expected 1, given {spec.groups}"
    return int8_linear.refuses(spec, isa)


def shared(spec: SparseConv, isa: Isa) -> SparseConv:
    """One kernel serves kernels of all sizes."""
    return replace(spec, kernel=(1, 1, 1), products="int8")


@dataclass(frozen=True)
class Operands:
    """The buffers of a sparse convolution and what is made of its rows; a residual that it lacks is never read."""

    weight: tvm.tirx.Buffer  # [taps, panels, HEADER + steps, cols]
    bias: tvm.tirx.Buffer  # [Cout]
    residual: tvm.tirx.Buffer  # [M, Cout]
    pair_in: tvm.tirx.Buffer  # [blocks, slots]
    pair_out: tvm.tirx.Buffer  # [blocks, slots]
    segment: tvm.tirx.Buffer  # [blocks, taps + 1]
    out: tvm.tirx.Buffer  # [M, Cout]
    rows: tvm.tirx.Buffer  # [N, stride], integers
    scale: tvm.tirx.Buffer  # [N]


@dataclass(frozen=True)
class Segment:
    """The pairs of one tap in one block of output rows, which are the rows of `sums` from `base` on."""

    block: tvm.tirx.Expr
    tap: tvm.tirx.Expr
    base: tvm.tirx.Expr
    start: tvm.tirx.Expr  # the first pair
    count: tvm.tirx.Expr
    steps: tvm.tirx.Buffer  # [1], known at run time only: LLVM would unroll few of them whole
    sums: tvm.tirx.Buffer  # [rows, Cout]


@cache
def int8_gather_gemm(spec: SparseConv, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SparseConv`."""
    form, tile = Form.of(isa), tile_of(isa)
    cin, cout, dtype, has_residual = spec.cin, spec.cout, spec.dtype, spec.has_residual
    rounding = Rounding(form, cin)
    lanes, cols, tile_rows, half = tile.lanes, tile.cols, tile.rows, (tile.rows + 1) // 2
    stride, panels = rounding.stride, tile.panels(cout)
    last_width = (cout - 1) % cols + 1
    whole_panels = panels - (last_width < cols)
    act = EMIT[spec.activation]
    direct = dtype == "float32"  # a narrower output is summed in a float32 scratch of the block

    @inline
    def round_rows(x, sign, q, scale, first, count):
        scratch = rounding.scratch()
        for i in range(count):
            rounding.round_row(x, first + i, sign, lambda line, most: None, q, first + i, scale, scratch)

    @inline
    def start_sum(o, row, place, c, sums):
        sums[place, c] = o.bias[c] + T.Cast("float32", o.residual[row, c]) if has_residual else o.bias[c]

    @inline
    def finish_sum(o, row, place, c, sums):
        o.out[row, c] = T.Cast(dtype, act(sums[place, c]))

    @inline
    def start_part(rows, part, vectors, o, segment, panel):
        for r in T.unroll(rows):
            for v in T.unroll(vectors):
                part[r, T.Ramp(v * lanes, 1, lanes)] = o.weight[segment.tap, panel, START, T.Ramp(v * lanes, 1, lanes)]

    @inline
    def step_part(first, rows, part, vectors, o, segment, source, panel, step):
        for r in T.unroll(rows):
            for v in T.unroll(vectors):
                part[r, T.Ramp(v * lanes, 1, lanes)] = T.call_pure_extern(
                    f"int32x{lanes}",
                    form.step,
                    part[r, T.Ramp(v * lanes, 1, lanes)],
                    o.weight[segment.tap, panel, HEADER + step, T.Ramp(v * lanes, 1, lanes)],
                    o.rows[source[first + r], step],
                )

    @inline
    def store_part(first, rows, part, vectors, products):
        for r in T.unroll(rows):
            for v in T.unroll(vectors):
                products[first + r, T.Ramp(v * lanes, 1, lanes)] = part[r, T.Ramp(v * lanes, 1, lanes)]

    @inline
    def multiply_tile(rows, vectors, o, segment, first, last, panel, products):
        """products[:rows] = those of the pairs from `first` on; past the `last` one they are its own again"""
        source = T.alloc_buffer((rows,), "int64")
        for r in T.unroll(rows):
            source[r] = T.Cast("int64", o.pair_in[segment.block, T.min(first + r, last)])
        acc = T.meta_var(Accumulators(rows, vectors * lanes, lanes, "int32"))
        acc.each(lambda first, rows, part: start_part(rows, part, vectors, o, segment, panel))
        with T.serial(0, segment.steps[0]) as step:
            acc.each(lambda first, rows, part: step_part(first, rows, part, vectors, o, segment, source, panel, step))
        acc.each(lambda first, rows, part: store_part(first, rows, part, vectors, products))

    @inline
    def add_value(o, segment, panel, products, r, target, scale, column):
        segment.sums[target, panel * cols + column] += T.Cast("float32", products[r, column]) * (
            scale * T.reinterpret("float32", o.weight[segment.tap, panel, SCALE, column])
        )

    @inline
    def add_row(columns, o, segment, pair, panel, products, r):
        """Add the products of one pair to the sums of its output row"""
        target: T.let = segment.base + T.Cast("int64", o.pair_out[segment.block, pair])
        scale: T.let = o.scale[T.Cast("int64", o.pair_in[segment.block, pair])]
        for v in T.unroll(columns // lanes):
            for lane in T.vectorized(lanes):
                add_value(o, segment, panel, products, r, target, scale, v * lanes + lane)
        for column in T.unroll(columns // lanes * lanes, columns):
            add_value(o, segment, panel, products, r, target, scale, column)

    @inline
    def multiply_panel(columns, o, segment, panel, products):
        for t in range((segment.count + (tile_rows - 1)) // tile_rows):
            first: T.let = segment.start + t * tile_rows
            last: T.let = segment.start + segment.count - 1
            here: T.let = T.min(T.int64(tile_rows), segment.count - t * tile_rows)
            if here > half:
                multiply_tile(tile_rows, (columns + lanes - 1) // lanes, o, segment, first, last, panel, products)
            else:
                multiply_tile(half, (columns + lanes - 1) // lanes, o, segment, first, last, panel, products)
            for r in range(here):
                add_row(columns, o, segment, first + r, panel, products, r)

    @inline
    def convolve_block(o, block, first_row, rows, taps, base, sums):
        """out[first_row : first_row + rows, :], summed in the rows of `sums` from `base` on"""
        products = T.alloc_buffer((tile_rows, cols), "int32")
        whole = T.alloc_buffer((1,), "int64")
        whole[0] = o.weight.shape[2] - HEADER
        for row in range(rows):
            each_channel(cout, lanes, lambda c: start_sum(o, first_row + row, base + row, c, sums))
        for tap in range(taps):
            start: T.let = T.Cast("int64", o.segment[block, tap])
            count: T.let = T.Cast("int64", o.segment[block, tap + 1]) - start
            segment = T.meta_var(Segment(block, tap, base, start, count, whole, sums))
            for panel in range(whole_panels):
                multiply_panel(cols, o, segment, panel, products)
            if last_width < cols:
                multiply_panel(last_width, o, segment, T.int64(panels - 1), products)
        if spec.activation != "none" or not direct:
            for row in range(rows):
                each_channel(cout, lanes, lambda c: finish_sum(o, first_row + row, base + row, c, sums))

    @inline
    def convolve_in_scratch(o, block, first_row, rows, taps, block_rows):
        sums = T.alloc_buffer((block_rows, cout), "float32")
        convolve_block(o, block, first_row, rows, taps, T.int64(0), sums)

    @inline
    def convolve(o, num_out, blocks, taps, block_rows):
        for block in T.parallel(blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)  # neighbouring blocks cost alike: deal them out
            first_row: T.let = block * block_rows
            rows: T.let = T.min(block_rows, num_out - first_row)
            if direct:
                convolve_block(o, block, first_row, rows, taps, first_row, o.out)
            else:
                convolve_in_scratch(o, block, first_row, rows, taps, block_rows)

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
        T.func_attr({"tirx.noalias": True, "global_symbol": name_of("int8_gather_gemm", spec, isa)})
        n, m, blocks, slots, taps, columns, depth = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        feats = match_buffer(feats_, (n, cin), dtype)
        weight = match_buffer(weight_, (taps, panels, depth, cols), "int32")
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (m, cout), dtype)
        pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
        pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        out = match_buffer(out_, (m, cout), dtype)
        T.attr(T.int32(0), "pragma_import_llvm", form.llvm_ir)
        check_map(map_rows, n, m, columns - 1, taps)
        rows = T.alloc_buffer((n, stride), "int32")
        scale = T.alloc_buffer((n,), "float32")
        sign = T.alloc_buffer((rounding.channels,), "float32")
        q = T.decl_buffer((n, stride * form.per), form.dtype, data=rows.data)
        rounding.find_signs(sign)
        for chunk in T.parallel((n + (TOGETHER - 1)) // TOGETHER):
            round_rows(feats, sign, q, scale, chunk * TOGETHER, T.min(T.int64(TOGETHER), n - chunk * TOGETHER))
        convolve(Operands(weight, bias, residual, pair_in, pair_out, segment, out, rows, scale), m, blocks, taps, slots // taps)

    return kernel if has_residual else drop_parameters(kernel, "residual")


@cache
def _weight_layout(shape: tuple[int, ...], dtype: str, isa: Isa) -> WeightLayout:
    cout, *kernel, cin = shape
    form, cols = Form.of(isa), tile_of(isa).cols
    rounding = Rounding(form, cin, weight=True)
    taps, panels, steps, channels = prod(kernel), -(-cout // cols), rounding.steps, rounding.channels

    def unpack(packed: np.ndarray) -> np.ndarray:
        steps_last = np.ascontiguousarray(packed[:, :, HEADER:].transpose(1, 3, 0, 2))  # [panels, cols, taps, steps]
        q = steps_last.view(np.dtype(form.weight_dtype)).reshape(panels * cols, taps, channels)[:cout]
        scale = packed[:, :, SCALE].reshape(taps, panels * cols)[:, :cout].T.copy().view(np.float32)  # [Cout, taps]
        sign = signs(channels)
        rows = (q * scale[:, :, None]).reshape(-1, channels) / sign
        return (rotate(rows) * sign)[:, :cin].reshape(shape)

    return WeightLayout((taps, panels, HEADER + steps, cols), "int32", pack_weight(cin, dtype, isa), unpack)


def weight_layout(spec: SparseConv, isa: Isa) -> WeightLayout:
    """int32 [taps, panels, HEADER + steps, cols]; each tap has scales of its own."""
    return _weight_layout((spec.cout, *spec.kernel, spec.cin), spec.dtype, isa)


@cache
def pack_weight(cin: int, dtype: str, isa: Isa) -> tvm.tirx.PrimFunc:
    """PrimFunc (weight `dtype` [Cout, kx, ky, kz, cin], packed int32 [taps, panels, HEADER + steps, cols])."""
    form, cols = Form.of(isa), tile_of(isa).cols
    rounding = Rounding(form, cin, weight=True)
    steps, stride, per, channels = rounding.steps, rounding.stride, form.per, rounding.channels

    @script.prim_func(s_tir=True)
    def kernel(weight_: T.handle, packed_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"pack_{form.name}_taps"})
        cout, kx, ky, kz, taps, panels = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        weight = match_buffer(weight_, (cout, kx, ky, kz, cin), dtype)
        packed = match_buffer(packed_, (taps, panels, HEADER + steps, cols), "int32")
        flat = T.decl_buffer((cout * kx * ky * kz, cin), dtype, data=weight.data)
        sign = T.alloc_buffer((channels,), "float32")
        rounding.find_signs(sign)
        for task in T.parallel(taps * panels):
            rows = T.alloc_buffer((cols, stride), "int32")
            scale = T.alloc_buffer((cols,), "float32")
            q = T.decl_buffer((cols, stride * per), rounding.dtype, data=rows.data)
            scratch = rounding.scratch()
            tap: T.let = task // panels
            panel: T.let = task % panels
            here: T.let = T.min(T.int64(cols), cout - panel * cols)
            for row, column in T.grid(HEADER, cols):
                packed[tap, panel, row, column] = T.int32(0)
            for column in range(here):
                rounding.round_row(
                    flat, (panel * cols + column) * taps + tap, sign, lambda line, most: None, q, column, scale, scratch
                )
                packed[tap, panel, SCALE, column] = T.reinterpret("int32", scale[column] * T.float32(GROUP))
                for c in range(channels):
                    packed[tap, panel, START, column] -= T.int32(form.offset) * T.Cast("int32", q[column, c])
            for step in range(steps):
                for column in range(here):
                    packed[tap, panel, HEADER + step, column] = rows[column, step]
                for column in range(cols - here):
                    packed[tap, panel, HEADER + step, here + column] = T.int32(0)

    return kernel
