"""The register tile that every matrix product of ours ends in: `acc[r, :] += a[source[r], :] @ weight`.

Sparse convolution and linear layers differ in where rows come from and go to; the inner loop is this one. The macros are
TVMScript (`script.inline`), specialised by the closure: a `Tile`, the depth of the sum and the width of the output.

Activations may be float32, bfloat16 or float16; sums are always float32. For the narrow types there are two ways:
- bfloat16 with a dot instruction (AVX512-BF16): weights are packed as pairs along the depth and one pair of an activation row
  is broadcast to all lanes;
- else weights are packed as float32 and the few rows of a tile are widened to float32 first, into scratch that
  stays in the L1 cache. It costs what float32 costs and saves memory, not time.
"""

from functools import cache
from itertools import pairwise
from math import prod

import numpy as np
import tvm
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

from .. import script
from ..buffers import STACK_BYTES, match_buffer
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


class Accumulators:
    """The sums of one register tile, `rows` x `columns`, in vectors of `lanes`; `RegisterTile.accumulators` makes float32 ones.

    TVM leaves a buffer below STACK_BYTES on the stack, where LLVM makes registers of it. A larger one comes from a workspace,
    and whether its sums stay in memory then depends on what else is in the module. So no buffer here is larger: `parts` are
    (first row, rows, buffer [rows, whole vectors]), of as equal heights as can be.
    """

    def __init__(self, rows: int, columns: int, lanes: int, dtype: str = "float32"):
        self.columns, self.lanes = columns, lanes
        self.vectors = -(-columns // lanes)
        row_bytes = 4 * self.vectors * lanes
        count = -(-rows // ((STACK_BYTES - 1) // row_bytes))
        cuts = [rows * part // count for part in range(count + 1)]
        self.parts = []
        for first, end in pairwise(cuts):
            assert (end - first) * row_bytes < STACK_BYTES, "a register tile must not be a workspace buffer"
            buffer = T.alloc_buffer((end - first, self.vectors * lanes), dtype)
            IRBuilder.name("acc", buffer)
            self.parts.append((first, end - first, buffer))

    def each(self, body):
        """Emit body(first row, rows, buffer) for each of `parts`."""
        for part in self.parts:
            body(*part)

    def load(self, value):
        """Emit: acc[r, column] = value(r, column), and zero from `columns` to the end of the last vector."""

        @inline
        def load_part(first, rows, part, columns, lanes):
            for r in T.unroll(rows):
                for v in T.unroll(columns // lanes):
                    for lane in T.vectorized(lanes):
                        part[r, v * lanes + lane] = value(first + r, v * lanes + lane)
                if columns % lanes > 0:
                    for rest in T.unroll(lanes):
                        part[r, columns // lanes * lanes + rest] = T.if_then_else(
                            rest < columns % lanes, value(first + r, columns // lanes * lanes + rest), T.float32(0)
                        )

        for part in self.parts:
            load_part(*part, self.columns, self.lanes)

    def store(self, put):
        """Emit: put(acc[r, column], r, column), which emits a store; vectors where they are whole, else one by one."""

        @inline
        def store_part(first, rows, part, columns, lanes):
            for r in T.unroll(rows):
                for v in T.unroll(columns // lanes):
                    for lane in T.vectorized(lanes):
                        put(part[r, v * lanes + lane], first + r, v * lanes + lane)
                for rest in T.unroll(columns % lanes):
                    put(part[r, columns // lanes * lanes + rest], first + r, columns // lanes * lanes + rest)

        for part in self.parts:
            store_part(*part, self.columns, self.lanes)


class RegisterTile:
    """What kernels emit around one register tile of `tile.rows` x `tile.cols` float32 accumulators.

    Weights are packed `[taps, panels, steps, cols]`, where a step is one input channel, or two with the dot instruction.
    The last of the column panels may be narrower than `cols`; it then uses only the vectors it needs, and its last vector
    is loaded and stored element by element.

    `acc` are `accumulators`, which know their rows and columns.
    """

    def __init__(self, isa: Isa, depth: int, width: int, dtype: str):
        self.depth, self.width = depth, width
        self.dot = dtype == "bfloat16" and isa.bf16_dot
        self.widens = dtype != "float32" and not self.dot
        self.tile = tile = Tile.of(isa, width)
        self.panels = tile.panels(width)
        self.last_width = width - (self.panels - 1) * tile.cols
        self.steps = (depth + 1) // 2 if self.dot else depth
        self.weight_dtype = "int32" if self.dot else "float32"
        self.llvm_ir = self._llvm_ir(isa) if self.dot else None

    @staticmethod
    def same_tile(isa: Isa, width: int, dtype: str) -> int:
        """The least width of the same tile whose last panel is as wide: that, and a panel before it if there are any."""
        cols = RegisterTile(isa, 1, width, dtype).tile.cols
        return min(width, width % cols + cols)

    def _llvm_ir(self, isa: Isa) -> str:
        text = DOT_EMULATED if isa.emulate_dot else DOT_NATIVE
        return text.format(n=isa.lanes, m=2 * isa.lanes, bits=32 * isa.lanes)

    def accumulators(self, rows: int, columns: int):
        """Emit: the `Accumulators` of a tile of `rows` x `columns`, both Python ints; for scripts, which take it as a value."""
        return T.meta_var(Accumulators(rows, columns, self.tile.lanes))

    def _add_step(self, acc, factor, weight):
        """Emit one step of the depth: acc[r, :] += factor(r) * weight(columns), or the dot of two such int32 pairs."""
        lanes = self.tile.lanes

        @inline
        def add_f32(first, rows, part, vectors):
            for r in T.unroll(rows):
                for v in T.unroll(vectors):
                    for lane in T.vectorized(lanes):
                        part[r, v * lanes + lane] += factor(first + r) * weight(v * lanes + lane)

        @inline
        def add_dot(first, rows, part, vectors):
            for r in T.unroll(rows):
                for v in T.unroll(vectors):
                    part[r, T.Ramp(v * lanes, 1, lanes)] = T.call_pure_extern(
                        f"float32x{lanes}",
                        "dot_bf16_pair",
                        part[r, T.Ramp(v * lanes, 1, lanes)],
                        weight(T.Ramp(v * lanes, 1, lanes)),
                        factor(first + r),
                    )

        for part in acc.parts:
            (add_dot if self.dot else add_f32)(*part, acc.vectors)

    def multiply(self, acc, a, source, weight, tap, panel, first=0, ahead=None, steps=None):
        """Emit: acc[r, :] += a[source[r], first : first + depth] @ weight[tap, panel, :, :], over the depth in order.

        `ahead(c)`: a statement beside each step c. `steps`: how many there are, without that of an odd last channel with a dot
        instruction, as a number known at run time only: a loop over few pairs LLVM unrolls whole, and then makes vectors of
        their loads, which it has to spill.
        """
        depth = self.depth
        if not self.dot:
            with T.serial(0, depth) as c:
                self._add_step(acc, lambda r: a[source[r], first + c], lambda column: weight[tap, panel, c, column])
                if ahead:
                    ahead(c)
            return
        with T.serial(0, depth // 2 if steps is None else steps) as c:
            self._add_step(
                acc,
                lambda r: pair_of_halves(a[source[r], first + 2 * c], a[source[r], first + 2 * c + 1]),
                lambda column: weight[tap, panel, c, column],
            )
            if ahead:
                ahead(c)
        if depth % 2 > 0:  # the pair of the last channel has no second half: never read past a row
            self._add_step(
                acc,
                lambda r: T.Cast("int32", T.reinterpret("uint16", a[source[r], first + depth - 1])),
                lambda column: weight[tap, panel, depth // 2, column],
            )

    def multiply_packed(self, acc, a, first_row, weight, panel, first_step, steps):
        """Emit: acc[r, :] += a[first_row + r, c] * weight[0, panel, first_step + c, :] over the `steps` c, in order."""
        with T.serial(0, steps) as c:
            self._add_step(acc, lambda r: a[first_row + r, c], lambda column: weight[0, panel, first_step + c, column])

    def multiply_sources(self, acc, a, source, weight, panel, first_step, steps, depth, ahead=None):
        """Emit: acc[r, :] += the steps of a[source[r], :] from `first_step` on @ those of weight[0, panel, :, :], in order.

        `depth`: channels of a row of `a`, which may be known at run time only. `ahead(c)`: a statement beside each step c.
        """

        def add(step, value):
            self._add_step(acc, lambda r: value(a, source[r], step), lambda column: weight[0, panel, step, column])

        def pair(a, row, step):
            return pair_of_halves(a[row, 2 * step], a[row, 2 * step + 1])

        def half(a, row, step):
            return T.Cast("int32", T.reinterpret("uint16", a[row, 2 * step]))

        # the pair of an odd last channel has no second half: never read past a row
        whole = T.min(steps, depth // 2 - first_step) if self.dot else steps
        with T.serial(0, whole) as c:
            add(first_step + c, pair if self.dot else lambda a, row, step: a[row, step])
            if ahead:
                ahead(c)
        if self.dot:
            with T.If(whole < steps), T.Then():
                add(first_step + whole, half)

    def multiply_rows(self, acc, a, first, b, count):
        """Emit: acc[r, :] += a[row, first + r] * b[row, :] over the `count` rows of both, in order: a.T @ b, of float32."""
        with T.serial(0, count) as row:
            self._add_step(acc, lambda r: a[row, first + r], lambda column: b[row, column])

    def widen(self, wide, rows, a, source, own, groups=1):
        """Emit: wide[r, :] = float32(a[source[r], :]); own[r] = r, the place of each of the `rows` rows in `wide`.

        A row of `a` has the depth of each of its `groups`.
        """
        depth, lanes = self.depth * groups, self.tile.lanes

        @inline
        def widen(wide, a, source, own):
            # vectors said here: LLVM unrolls a short loop whole and then finds none, as it cannot rule out that both overlap
            for r in T.unroll(rows):
                own[r] = T.int64(r)
                for v in range(depth // lanes):
                    for lane in T.vectorized(lanes):
                        wide[r, v * lanes + lane] = T.Cast("float32", a[source[r], v * lanes + lane])
                for c in range(depth % lanes):
                    wide[r, depth // lanes * lanes + c] = T.Cast("float32", a[source[r], depth // lanes * lanes + c])

        widen(wide, a, source, own)

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
def weight_layout(shape: tuple[int, ...], isa: Isa, dtype: str, groups: int = 1) -> WeightLayout:
    """How `RegisterTile` reads a weight `dtype` of `shape` [groups * width, *kernel, depth]: [taps, panels, steps, cols].

    Each group has panels of its own.
    """
    rows, *kernel, depth = shape
    width = rows // groups
    micro = RegisterTile(isa, depth, width, dtype)

    def unpack(packed: np.ndarray) -> np.ndarray:
        if micro.dot:  # pairs of upper halves of a float32
            halves = np.stack([packed << 16, packed & -65536], 3).view("float32")  # [taps, panels, steps, 2, cols]
            packed = halves.reshape(*packed.shape[:2], 2 * micro.steps, micro.tile.cols)
        padded = micro.panels * micro.tile.cols
        rows = packed.transpose(1, 3, 0, 2).reshape(groups, padded, len(packed), packed.shape[2])
        return rows[:, :width, :, :depth].reshape(shape)

    packed = (prod(kernel), groups * micro.panels, micro.steps, micro.tile.cols)
    pack = pack_weight(micro.tile.cols, len(shape), dtype, micro.dot, groups)
    return WeightLayout(packed, micro.weight_dtype, pack, unpack)


@cache
def pack_weight(cols: int, ndim: int, dtype: str, dot: bool, groups: int = 1) -> tvm.tirx.PrimFunc:
    """PrimFunc (weight `dtype` [width, *kernel, depth] of `ndim` axes, packed): the layout that `RegisterTile` reads.

    weight: [Cout, Cin] of a linear layer, [Cout, kx, ky, kz, Cin] of a convolution. packed float32 [taps, panels, depth, cols],
    or, with `dot`, int32 [taps, panels, ceil(depth / 2), cols] of bfloat16 pairs. Columns past `width`, of each of
    its `groups`, are zero.
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

    def first_column(panel, panels):
        """The row of the weight that a panel begins with."""
        if groups == 1:
            return panel * cols
        of_group = panels // groups
        return panel // of_group * (width // groups) + panel % of_group * cols

    def last_column(panel, panels):
        """That which its group ends before."""
        return width if groups == 1 else (panel // (panels // groups) + 1) * (width // groups)

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
            first: T.let = first_column(panel, panels)
            here: T.let = T.min(T.int64(cols), last_column(panel, panels) - first)
            for step in range(steps):
                for column in range(here):
                    packed[tap, panel, step, column] = element(flat, first + column, tap, step)
                for column in range(cols - here):
                    packed[tap, panel, step, here + column] = T.Cast(packed_dtype, 0)

    return kernel
