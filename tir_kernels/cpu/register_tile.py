"""The register tile that every matrix product of ours ends in: `acc[r, :] += a[source[r], :] @ weight`.

Sparse convolution and linear layers differ in where rows come from and go to; the inner loop is this one. The macros are
TVMScript (`script.inline`), specialised by the closure: a `Tile`, the depth of the sum and the width of the output.

Activations may be float32 or bfloat16; sums are always float32. For bfloat16 there are two ways:
- with a dot instruction (AVX512-BF16), weights are packed as pairs along the depth and one pair of an activation row is
  broadcast to all lanes;
- without one, weights are packed as float32 and the few rows of a tile are widened to float32 first, into scratch that
  stays in the L1 cache. It costs what float32 costs and saves memory, not time.
"""

from functools import cache
from math import prod

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..layout import WeightLayout
from ..script import inline
from .isa import Isa, Tile

# TIR has no name for the instruction, and a bfloat16 operand would be rewritten to integers before code generation.
DOT_NATIVE = """
declare <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{n} x float>, <{m} x bfloat>, <{m} x bfloat>) #0
define <{n} x float> @dot_bf16_pair(<{n} x float> %acc, <{n} x i32> %w, i32 %a) #1 {{
  %one = insertelement <{n} x i32> poison, i32 %a, i64 0
  %all = shufflevector <{n} x i32> %one, <{n} x i32> poison, <{n} x i32> zeroinitializer
  %x = bitcast <{n} x i32> %all to <{m} x bfloat>
  %y = bitcast <{n} x i32> %w to <{m} x bfloat>
  %r = call <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{n} x float> %acc, <{m} x bfloat> %x, <{m} x bfloat> %y)
  ret <{n} x float> %r
}}
attributes #0 = {{ nounwind willreturn memory(none) }}
attributes #1 = {{ alwaysinline nounwind willreturn memory(none) }}
"""
# The same function without the instruction: lets a machine that lacks it test everything around it.
DOT_EMULATED = """
declare <{n} x float> @llvm.fma.v{n}f32(<{n} x float>, <{n} x float>, <{n} x float>) #0
define <{n} x float> @dot_bf16_pair(<{n} x float> %acc, <{n} x i32> %w, i32 %a) #1 {{
  %one = insertelement <{n} x i32> poison, i32 %a, i64 0
  %all = shufflevector <{n} x i32> %one, <{n} x i32> poison, <{n} x i32> zeroinitializer
  %alo = shl <{n} x i32> %all, splat (i32 16)
  %ahi = and <{n} x i32> %all, splat (i32 -65536)
  %wlo = shl <{n} x i32> %w, splat (i32 16)
  %whi = and <{n} x i32> %w, splat (i32 -65536)
  %a0 = bitcast <{n} x i32> %alo to <{n} x float>
  %a1 = bitcast <{n} x i32> %ahi to <{n} x float>
  %w0 = bitcast <{n} x i32> %wlo to <{n} x float>
  %w1 = bitcast <{n} x i32> %whi to <{n} x float>
  %s = call <{n} x float> @llvm.fma.v{n}f32(<{n} x float> %a1, <{n} x float> %w1, <{n} x float> %acc)
  %r = call <{n} x float> @llvm.fma.v{n}f32(<{n} x float> %a0, <{n} x float> %w0, <{n} x float> %s)
  ret <{n} x float> %r
}}
attributes #0 = {{ nounwind willreturn memory(none) }}
attributes #1 = {{ alwaysinline nounwind willreturn memory(none) }}
"""


def pair_of_halves(low, high):
    """int32 of two bfloat16 expressions; code generation turns the two loads into one."""
    low, high = (T.Cast("int32", T.reinterpret("uint16", half)) for half in (low, high))
    return low | (high << 16)


class RegisterTile:
    """Macros over one register tile of `tile.rows` x `tile.cols` float32 accumulators.

    Weights are packed `[taps, panels, steps, cols]`, where a step is one input channel, or two with the dot instruction.
    The last of the column panels may be narrower than `cols`; it then uses only the vectors it needs, and its last vector
    is loaded and stored element by element.

    `columns` is the number of valid columns of a panel and `rows` that of a tile, both Python ints; `value` and `finish`
    are Python functions from TIR expressions to a TIR expression.
    """

    def __init__(self, isa: Isa, depth: int, width: int, dtype: str):
        self.depth, self.width = depth, width
        self.dot = dtype == "bfloat16" and isa.bf16_dot
        self.widens = dtype == "bfloat16" and not isa.bf16_dot
        self.tile = tile = Tile.of(isa, width, self.dot)
        self.panels = tile.panels(width)
        self.last_width = width - (self.panels - 1) * tile.cols
        self.steps = (depth + 1) // 2 if self.dot else depth
        self.weight_dtype = "int32" if self.dot else "float32"
        self.llvm_ir = self._llvm_ir(isa) if self.dot else None
        self._define_macros()

    @staticmethod
    def same_tile(isa: Isa, width: int, dtype: str) -> int:
        """The least width of the same tile whose last panel is as wide: that, and a panel before it if there are any."""
        cols = RegisterTile(isa, 1, width, dtype).tile.cols
        return min(width, width % cols + cols)

    def _llvm_ir(self, isa: Isa) -> str:
        text = DOT_EMULATED if isa.emulate_dot else DOT_NATIVE
        return text.format(n=isa.lanes, m=2 * isa.lanes, bits=32 * isa.lanes)

    def _define_macros(self):
        lanes, depth, vector = self.tile.lanes, self.depth, f"float32x{self.tile.lanes}"

        @inline
        def load(acc, rows, columns, target, first_column, value):
            """acc[r, :] = value(target[r], column) for the `columns` columns from first_column"""
            for r in T.unroll(rows):
                for v in T.unroll(columns // lanes):
                    for lane in T.vectorized(lanes):
                        acc[r, v * lanes + lane] = value(target[r], first_column + v * lanes + lane)
                if columns % lanes > 0:
                    for rest in T.unroll(lanes):
                        acc[r, columns // lanes * lanes + rest] = T.if_then_else(
                            rest < columns % lanes,
                            value(target[r], first_column + columns // lanes * lanes + rest),
                            T.float32(0),
                        )

        @inline
        def multiply_f32(acc, rows, columns, a, source, weight, tap, panel):
            """acc[r, :] += a[source[r], c] * weight[tap, panel, c, :] over c, in order"""
            for c in range(depth):
                for r in T.unroll(rows):
                    for v in T.unroll((columns + lanes - 1) // lanes):
                        for lane in T.vectorized(lanes):
                            acc[r, v * lanes + lane] += a[source[r], c] * weight[tap, panel, c, v * lanes + lane]

        @inline
        def multiply_dot(acc, rows, columns, a, source, weight, tap, panel):
            """acc[r, :] += a[source[r], 2 c] * weight low + a[source[r], 2 c + 1] * weight high over c, in order"""
            for c in range(depth // 2):
                for r in T.unroll(rows):
                    for v in T.unroll((columns + lanes - 1) // lanes):
                        acc[r, T.Ramp(v * lanes, 1, lanes)] = T.call_pure_extern(
                            vector,
                            "dot_bf16_pair",
                            acc[r, T.Ramp(v * lanes, 1, lanes)],
                            weight[tap, panel, c, T.Ramp(v * lanes, 1, lanes)],
                            pair_of_halves(a[source[r], 2 * c], a[source[r], 2 * c + 1]),
                        )
            if depth % 2 > 0:  # the pair of the last channel has no second half: never read past a row
                for r in T.unroll(rows):
                    for v in T.unroll((columns + lanes - 1) // lanes):
                        acc[r, T.Ramp(v * lanes, 1, lanes)] = T.call_pure_extern(
                            vector,
                            "dot_bf16_pair",
                            acc[r, T.Ramp(v * lanes, 1, lanes)],
                            weight[tap, panel, depth // 2, T.Ramp(v * lanes, 1, lanes)],
                            T.Cast("int32", T.reinterpret("uint16", a[source[r], depth - 1])),
                        )

        @inline
        def multiply_packed_f32(acc, rows, columns, a, first_row, weight, panel, first_step, steps):
            """acc[r, :] += a[first_row + r, c] * weight[0, panel, first_step + c, :] over c, in order"""
            for c in range(steps):
                for r in T.unroll(rows):
                    for v in T.unroll((columns + lanes - 1) // lanes):
                        for lane in T.vectorized(lanes):
                            acc[r, v * lanes + lane] += a[first_row + r, c] * weight[0, panel, first_step + c, v * lanes + lane]

        @inline
        def multiply_packed_dot(acc, rows, columns, a, first_row, weight, panel, first_step, steps):
            """The same for pairs: both hold an int32 of two bfloat16 for every step"""
            for c in range(steps):
                for r in T.unroll(rows):
                    for v in T.unroll((columns + lanes - 1) // lanes):
                        acc[r, T.Ramp(v * lanes, 1, lanes)] = T.call_pure_extern(
                            vector,
                            "dot_bf16_pair",
                            acc[r, T.Ramp(v * lanes, 1, lanes)],
                            weight[0, panel, first_step + c, T.Ramp(v * lanes, 1, lanes)],
                            a[first_row + r, c],
                        )

        @inline
        def widen(wide, rows, a, source, own):
            """wide[r, :] = float32(a[source[r], :]); own[r] = r, the place of each row in `wide`"""
            for r in T.unroll(rows):
                own[r] = T.int64(r)
                for c in range(depth):
                    wide[r, c] = T.Cast("float32", a[source[r], c])

        @inline
        def store(acc, rows, columns, buffer, target, first_column, finish):
            """buffer[target[r], column] = finish(acc[r, :], target[r], column) from first_column on"""
            for r in T.unroll(rows):
                for v in T.unroll(columns // lanes):
                    for lane in T.vectorized(lanes):
                        buffer[target[r], first_column + v * lanes + lane] = finish(
                            acc[r, v * lanes + lane], target[r], first_column + v * lanes + lane
                        )
                for rest in T.unroll(columns % lanes):
                    buffer[target[r], first_column + columns // lanes * lanes + rest] = finish(
                        acc[r, columns // lanes * lanes + rest],
                        target[r],
                        first_column + columns // lanes * lanes + rest,
                    )

        self.load, self.store, self.widen = load, store, widen
        self.multiply = multiply_dot if self.dot else multiply_f32
        self.multiply_packed = multiply_packed_dot if self.dot else multiply_packed_f32

    def over_rows(self, count, body):
        """Emit `body(rows, first)` for full tiles of `count` rows and narrower tiles for the rest.

        `body` is a macro whose first argument, the number of rows, is a Python int. Of tiles up to six rows high, each
        remainder has code of its own; of higher ones, for few columns, a remainder is a sum of powers of two.
        """
        rows = self.tile.rows
        with T.serial(0, count // rows) as group:
            body(rows, group * rows)
        rest, done = count % rows, count - count % rows
        if rows <= 6:
            for narrow in range(1, rows):
                with T.If(rest == narrow), T.Then():
                    body(narrow, done)
        else:
            for narrow in (8, 4, 2, 1):
                with T.If(rest // narrow % 2 == 1), T.Then():
                    body(narrow, done + rest // (2 * narrow) * (2 * narrow))

    def over_tiles(self, count, body):
        """Emit `body(rows, first)` for register tiles that cover `count` rows; the last one may reach past them.

        `body` is a macro whose first argument, the number of rows, is a Python int: that of a whole tile or, where the last
        rows fit into it, of half a tile. Code for every remainder would hardly be faster, as few rows wait for their sums, and
        takes most of the time that a kernel takes to compile.
        """
        rows, half = self.tile.rows, self.tile.rows // 2
        whole = (count + (rows - half - 1)) // rows
        with T.serial(0, whole) as tile:
            body(rows, tile * rows)
        with T.If(whole * rows < count), T.Then():
            body(half, whole * rows)

    def over_panels(self, body, panels, first=0, end=None):
        """Emit `body(columns, panel)` for those of the `panels` column panels from `first` to before `end`, by default all.

        `columns` is a Python int: the last panel, which may be narrower, has code of its own.
        """
        cols, narrow = self.tile.cols, self.last_width < self.tile.cols
        full = panels - narrow
        if self.width >= cols:
            with T.serial(first, full if end is None else T.min(end, full)) as panel:
                body(cols, panel)
        if narrow and end is None:
            body(self.last_width, full)
        elif narrow:
            with T.If(end > full), T.Then():
                body(self.last_width, full)


@cache
def weight_layout(shape: tuple[int, ...], isa: Isa, dtype: str) -> WeightLayout:
    """How `RegisterTile` reads a weight `dtype` of `shape` [width, *kernel, depth]: [taps, panels, steps, cols]."""
    width, *kernel, depth = shape
    micro = RegisterTile(isa, depth, width, dtype)

    def unpack(packed: np.ndarray) -> np.ndarray:
        if micro.dot:  # pairs of upper halves of a float32
            halves = np.stack([packed << 16, packed & -65536], 3).view("float32")  # [taps, panels, steps, 2, cols]
            packed = halves.reshape(*packed.shape[:2], 2 * micro.steps, micro.tile.cols)
        rows = packed.transpose(1, 3, 0, 2).reshape(micro.panels * micro.tile.cols, len(packed), packed.shape[2])
        return rows[:width, :, :depth].reshape(shape)

    packed = (prod(kernel), micro.panels, micro.steps, micro.tile.cols)
    return WeightLayout(packed, micro.weight_dtype, pack_weight(micro.tile.cols, len(shape), dtype, micro.dot), unpack)


@cache
def pack_weight(cols: int, ndim: int, dtype: str, dot: bool) -> tvm.tirx.PrimFunc:
    """PrimFunc (weight `dtype` [width, *kernel, depth] of `ndim` axes, packed): the layout that `RegisterTile` reads.

    weight: [Cout, Cin] of a linear layer, [Cout, kx, ky, kz, Cin] of a convolution. packed float32 [taps, panels, depth, cols],
    or, with `dot`, int32 [taps, panels, ceil(depth / 2), cols] of bfloat16 pairs. Columns past `width` are zero.
    """
    packed_dtype = "int32" if dot else "float32"
    shape = width, *sizes, depth = [tvm.tirx.Var(f"size{axis}", "int64") for axis in range(ndim)]

    def half(weight, column, tap, c):
        """The upper 16 bits of a weight, rounded to bfloat16, as int32; zero past the end of the depth."""
        value = T.Cast("bfloat16", weight[column, tap, T.min(c, depth - 1)])
        return T.if_then_else(c < depth, T.Cast("int32", T.reinterpret("uint16", value)), T.int32(0))

    def element(weight, column, tap, step):
        if dot:
            return half(weight, column, tap, 2 * step) | (half(weight, column, tap, 2 * step + 1) << 16)
        return T.Cast("float32", weight[column, tap, step])

    @script.prim_func(s_tir=True)
    def kernel(weight_: T.handle, packed_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "pack_weight"})
        taps, panels, steps = T.int64(), T.int64(), T.int64()
        weight = match_buffer(weight_, shape, dtype)
        packed = match_buffer(packed_, (taps, panels, steps, cols), packed_dtype)
        flat = T.decl_buffer((width, prod(sizes), depth), dtype, data=weight.data)
        for task in T.parallel(taps * panels):
            tap: T.let = task // panels
            panel: T.let = task % panels
            here: T.let = T.min(T.int64(cols), width - panel * cols)
            for step in range(steps):
                for column in range(here):
                    packed[tap, panel, step, column] = element(flat, panel * cols + column, tap, step)
                for column in range(cols - here):
                    packed[tap, panel, step, here + column] = T.Cast(packed_dtype, 0)

    return kernel
