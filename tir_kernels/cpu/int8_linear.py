"""The linear layer with integer products; `spec.int8_linear` says what it computes.

Rows are rotated and rounded once, into scratch of a quarter or half of their bytes. Then a task is a block of rows and a range
of column panels: a register tile of int32 sums takes the whole depth, four or two channels to a step, and nothing is scaled
inside. The sums of a tile pass through scratch that stays in the L1 cache into the epilogue, which is vectors of one row.

A panel of the packed weight begins with what its columns need besides: the header.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..layout import WeightLayout
from ..script import drop_parameters, inline
from ..spec.int8_linear import APART, GROUP, LEAST, MOST_DEPTH, levels, padded, rotate, signs
from ..spec.linear import Linear
from ..spec.sparse_conv import SparseConv
from ..vector_math import EMIT, bind
from .caches import L2, prefetch
from .guards import check_batch_index
from .isa import INTEGER, Isa, Tile
from .register_tile import Accumulators

# Rows of a panel's header, [HEADER, cols] int32 before the steps
CORRECTION = 0  # what an offset of the activations adds to each sum
SCALE = 1  # 64 s of each column, the bits of a float32
COLUMNS = 2  # the float32 weights of each channel kept apart
CHANNELS = COLUMNS + APART  # the numbers of these channels, -1 for none, in the first columns
HEADER = CHANNELS + 1

FETCH = 8  # steps to a line of the next panel's weights that is asked for
LINE = 16  # int32 to the end of a row in scratch: rows of a power of two would share places in the L1 cache
FEW = 4  # rows that are rounded without waking threads
TOGETHER = 16  # rows that one task rounds
CHUNK_ROWS = 8192  # rounded at a time, so that scratch does not grow with the rows
BLOCK_ROWS = 768  # of a task, at most: as many share what a panel's weights cost
LEAST_ROWS = 96  # of a deep one
TASKS = 32  # of few rows; they are then cut along the columns, so that threads have equal work
INFINITE = 0x7F800000  # bits of the float32 infinity; those of NaN are above

# One step of a register tile: acc + products of a, the same in all lanes, with w.
STEP = """
{declare}
define <{n} x i32> @{name}(<{n} x i32> %acc, <{n} x i32> %w, i32 %a) #1 {{
  %one = insertelement <{n} x i32> poison, i32 %a, i64 0
  %all = shufflevector <{n} x i32> %one, <{n} x i32> poison, <{n} x i32> zeroinitializer
{body}
  ret <{n} x i32> %r
}}
attributes #0 = {{ nounwind willreturn memory(none) }}
attributes #1 = {{ alwaysinline nounwind willreturn memory(none) }}
"""
# A stage of a rotation within a vector: sums and differences of lanes some way apart. Of shuffles in TIR a kernel would take a
# minute to compile.
ACROSS = """
define <{n} x float> @{name}(<{n} x float> %own) alwaysinline nounwind willreturn memory(none) {{
  %other = shufflevector <{n} x float> %own, <{n} x float> poison, <{n} x i32> <{partner}>
  %sum = fadd <{n} x float> %other, %own
  %difference = fsub <{n} x float> %other, %own
  %r = shufflevector <{n} x float> %sum, <{n} x float> %difference, <{n} x i32> <{halves}>
  ret <{n} x float> %r
}}
"""
NATIVE = {
    "vpdpbusd": (
        "declare <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32>, <{n} x i32>, <{n} x i32>) #0",
        "  %r = call <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32> %acc, <{n} x i32> %all, <{n} x i32> %w)",
    ),
    "sdot": (
        "declare <{n} x i32> @llvm.aarch64.neon.sdot.v{n}i32.v{bytes}i8(<{n} x i32>, <{bytes} x i8>, <{bytes} x i8>) #0",
        """  %x = bitcast <{n} x i32> %all to <{bytes} x i8>
  %y = bitcast <{n} x i32> %w to <{bytes} x i8>
  %r = call <{n} x i32> @llvm.aarch64.neon.sdot.v{n}i32.v{bytes}i8(<{n} x i32> %acc, <{bytes} x i8> %y, <{bytes} x i8> %x)""",
    ),
    "vpmaddwd": (
        "declare <{n} x i32> @llvm.x86.{pmaddwd}(<{halves} x i16>, <{halves} x i16>) #0",
        """  %x = bitcast <{n} x i32> %all to <{halves} x i16>
  %y = bitcast <{n} x i32> %w to <{halves} x i16>
  %p = call <{n} x i32> @llvm.x86.{pmaddwd}(<{halves} x i16> %x, <{halves} x i16> %y)
  %r = add <{n} x i32> %acc, %p""",
    ),
    "vpmaddubsw": (
        """declare <{halves} x i16> @llvm.x86.{pmaddubsw}(<{bytes} x i8>, <{bytes} x i8>) #0
declare <{n} x i32> @llvm.x86.{pmaddwd}(<{halves} x i16>, <{halves} x i16>) #0""",
        """  %x = bitcast <{n} x i32> %all to <{bytes} x i8>
  %y = bitcast <{n} x i32> %w to <{bytes} x i8>
  %h = call <{halves} x i16> @llvm.x86.{pmaddubsw}(<{bytes} x i8> %x, <{bytes} x i8> %y)
  %p = call <{n} x i32> @llvm.x86.{pmaddwd}(<{halves} x i16> %h, <{halves} x i16> splat (i16 1))
  %r = add <{n} x i32> %acc, %p""",
    ),
}


@dataclass(frozen=True)
class Form:
    """How an instruction takes integers: `name` of `INTEGER`, in vectors of `lanes` int32.

    `per`: channels to an int32, each `dtype`. `offset` is added to activations, where the instruction takes them unsigned.
    """

    name: str
    lanes: int
    emulated: bool

    @classmethod
    def of(cls, isa: Isa) -> "Form":
        """That of an instruction set which has one."""
        return cls(isa.integer[0], isa.lanes, isa.emulate_integer)

    @property
    def per(self) -> int:
        return 2 if self.name == "vpmaddwd" else 4

    @property
    def bits(self) -> tuple[int, int]:
        """Of an activation and of a weight."""
        return INTEGER[self.name]

    @property
    def offset(self) -> int:
        return {"vpdpbusd": 128, "vpmaddubsw": 64}.get(self.name, 0)

    @property
    def dtype(self) -> str:
        return "int16" if self.per == 2 else "uint8"

    @property
    def weight_dtype(self) -> str:
        return "int16" if self.per == 2 else "int8"

    @property
    def step(self) -> str:
        """The name of the function of one step."""
        return f"integer_step_{self.name}_{self.lanes}"

    @property
    def llvm_ir(self) -> str:
        """The text that defines `step`."""
        n, wide = self.lanes, self.lanes == 16
        declare, body = ("", self._plain()) if self.emulated else NATIVE[self.name]
        sizes = {
            "n": n,
            "halves": 2 * n,
            "bytes": 4 * n,
            "bits": 32 * n,
            "pmaddwd": "avx512.pmaddw.d.512" if wide else "avx2.pmadd.wd",
            "pmaddubsw": "avx512.pmaddubs.w.512" if wide else "avx2.pmadd.ub.sw",
        }
        return STEP.format(n=n, name=self.step, declare=declare.format(**sizes), body=body.format(**sizes))

    def _plain(self) -> str:
        """The same without the instruction: a machine that lacks it tests everything around it."""
        size, lines, sums = 32 // self.per, [], "%acc"
        for part in range(self.per):
            shift, last = 32 - size * (part + 1), "%r" if part == self.per - 1 else f"%s{part}"
            signed = "lshr" if self.offset else "ashr"
            lines += [
                f"%ah{part} = shl <{{n}} x i32> %all, splat (i32 {shift})",
                f"%a{part} = {signed} <{{n}} x i32> %ah{part}, splat (i32 {32 - size})",
                f"%wh{part} = shl <{{n}} x i32> %w, splat (i32 {shift})",
                f"%w{part} = ashr <{{n}} x i32> %wh{part}, splat (i32 {32 - size})",
                f"%p{part} = mul <{{n}} x i32> %a{part}, %w{part}",
                f"{last} = add <{{n}} x i32> {sums}, %p{part}",
            ]
            sums = last
        return "\n".join("  " + line for line in lines)


def tile_of(isa: Isa) -> Tile:
    """The register tile: with 32 registers 24 sums, with 16 as many as leave room for weights and an activation."""
    if isa.lanes == 16:
        return Tile(6, 64, 16)
    if isa.registers == 32:
        return Tile(6, 4 * isa.lanes, isa.lanes)
    return Tile({"vpdpbusd": 6, "vpmaddubsw": 5, "vpmaddwd": 4}[isa.integer[0]], 2 * isa.lanes, isa.lanes)


def refuses(spec: Linear | SparseConv, isa: Isa) -> str | None:
    """Why an integer instruction does not serve products over `cin` channels for `cout`."""
    if spec.cin > MOST_DEPTH:
        return f"cin: expected at most {MOST_DEPTH}, whose integer sums int32 holds, given {spec.cin}"
    if spec.cin < GROUP or spec.cout < GROUP:
        return f"rounding does not pay for {spec.cin} -> {spec.cout} channels, expected at least {GROUP} of both"
    if isa.integer[0] == "vpmaddubsw" and spec.products != "int7":
        return f"products: expected 'int7', as it takes 7 bits, given {spec.products!r}"
    return None


def shared(spec: Linear, isa: Isa) -> Linear:
    """One kernel serves all Cout whose last panel is as wide."""
    cols = tile_of(isa).cols
    return replace(spec, cout=spec.cout % cols + cols, out_dtype=spec.out_dtype or spec.dtype, products="int8")


@dataclass(frozen=True)
class Rounding:
    """How a row of `depth` channels becomes integers: as an activation, or with `weight` as an output channel's weight."""

    form: Form
    depth: int
    weight: bool = False

    @property
    def channels(self) -> int:
        """Of a rotated row."""
        return padded(self.depth)

    @property
    def spread(self) -> int:
        """How far apart the channels are that a rotation mixes."""
        return self.channels // GROUP

    @property
    def is_narrow(self) -> bool:
        """Whether what a rotation mixes lies in parts in one vector: a row is then kept without gaps, and vectors shuffled."""
        return self.spread < self.form.lanes and self.form.lanes % max(self.spread, 1) == 0

    @property
    def run(self) -> int:
        """`spread` in whole vectors: what lies past it in scratch is of no meaning."""
        if self.is_narrow:
            return self.spread
        return -(-self.spread // self.form.lanes) * self.form.lanes

    @property
    def most(self) -> int:
        return levels(self.depth, self.form.bits[self.weight])

    @property
    def dtype(self) -> str:
        return self.form.weight_dtype if self.weight else self.form.dtype

    @property
    def steps(self) -> int:
        """int32 of a row."""
        return self.channels // self.form.per

    @property
    def stride(self) -> int:
        """int32 of a row in scratch, to whose end a last vector may reach."""
        return self.steps + LINE

    def find_signs(self, sign):
        """Emit: sign[c], see `spec.int8_linear.signs`; zero past the end of the depth. sign float32 [channels]."""
        depth, channels = self.depth, self.channels

        @inline
        def find(sign):
            if self.is_narrow:
                T.attr(T.int32(0), "pragma_import_llvm", self._across())
            for c in range(channels):
                number: T.let = T.Cast("uint32", c) * T.uint32(0x9E3779B1)
                mixed: T.let = (number ^ (number >> T.uint32(15))) * T.uint32(0x85EBCA77)
                sign[c] = T.Select(
                    c < depth,
                    T.Select(mixed >> T.uint32(31) == T.uint32(1), T.float32(-1 / GROUP), T.float32(1 / GROUP)),
                    T.float32(0),
                )

        find(sign)

    def _across_name(self, distance: int) -> str:
        return f"rotate_across_{distance}_of_{self.form.lanes}"

    def _across(self) -> str:
        """The text that defines the stages of a rotation within a vector."""
        n, distance, text = self.form.lanes, self.spread, ""
        while distance < n:
            partner = ", ".join(f"i32 {lane ^ distance}" for lane in range(n))
            halves = ", ".join(f"i32 {lane + n if lane & distance else lane}" for lane in range(n))
            text += ACROSS.format(n=n, name=self._across_name(distance), partner=partner, halves=halves)
            distance *= 2
        return text

    def scratch(self):
        """Emit: the buffers of `round_row`."""
        lanes = self.form.lanes
        line = T.alloc_buffer((self.channels + lanes,), "float32")
        rotated = T.alloc_buffer((GROUP * self.run,), "float32")
        most = T.alloc_buffer((lanes,), "int32")
        factor = T.alloc_buffer((1,), "float32")
        return T.meta_var(RowScratch(line, rotated, most, factor))

    def round_row(self, x, row, sign, clear, q, to, scale, scratch):
        """Emit: q[to, :] = the integers of x[row, :], scale[to] = s.

        `clear(line, most)` emits what takes channels out of a row, and notes in most[0] the bits of their size.
        """
        form, depth, spread, run, channels = self.form, self.depth, self.spread, self.run, self.channels
        lanes, most_level, dtype, narrow = form.lanes, self.most, self.dtype, self.is_narrow
        # 1.5 * 2^23: the sum's last bits are those of the integer, to which the addition rounds
        magic = 1.5 * 2**23 + (0 if self.weight else form.offset)

        @inline
        def copy(x, row, sign, s):
            for v in range(depth // lanes):
                for lane in T.vectorized(lanes):
                    s.line[v * lanes + lane] = T.Cast("float32", x[row, v * lanes + lane]) * sign[v * lanes + lane]
            for c in range(depth % lanes):
                s.line[depth // lanes * lanes + c] = (
                    T.Cast("float32", x[row, depth // lanes * lanes + c]) * sign[depth // lanes * lanes + c]
                )
            for c in range(channels + lanes - depth):
                s.line[depth + c] = T.float32(0)

        def vector(buffer, at):
            return buffer[T.Ramp(at, 1, lanes)]

        def butterflies(values):
            """The stages of the transform of these vectors, at most eight."""
            values = [bind(value) for value in values]
            for width in [width for width in (1, 2, 4) if width < len(values)]:
                pairs = [(values[a], values[a ^ width], a & width) for a in range(len(values))]
                values = [bind(other - own if high else own + other) for own, other, high in pairs]
            return values

        def first_stages(s, block, v):
            values = butterflies([vector(s.line, (block * 8 + a) * spread + v * lanes) for a in range(8)])
            for a, value in enumerate(values):
                T.buffer_store(s.rotated, value, [T.Ramp((block * 8 + a) * run + v * lanes, 1, lanes)])

        def last_stages(s, block, v):
            values = butterflies([vector(s.rotated, (a * 8 + block) * run + v * lanes) for a in range(8)])
            for a, value in enumerate(values):
                T.buffer_store(s.rotated, value, [T.Ramp((a * 8 + block) * run + v * lanes, 1, lanes)])
            sizes = [T.reinterpret(f"int32x{lanes}", value) & T.Broadcast(T.int32(0x7FFFFFFF), lanes) for value in values]
            while len(sizes) > 1:
                sizes = [bind(T.max(*pair)) for pair in zip(sizes[::2], sizes[1::2], strict=True)]
            (size,) = sizes
            if run > spread:
                inside = T.Ramp(v * lanes, 1, lanes) < T.Broadcast(spread, lanes)
                size = T.Select(inside, size, T.Broadcast(T.int32(0), lanes))
            place = T.Ramp(0, 1, lanes)
            T.buffer_store(s.most, T.max(s.most[place], size), [place])

        def across(value, distance):
            """A stage of the transform within a vector, of lanes `distance` apart."""
            return bind(T.call_pure_extern(f"float32x{lanes}", self._across_name(distance), value))

        def note_sizes(s, values):
            sizes = [T.reinterpret(f"int32x{lanes}", value) & T.Broadcast(T.int32(0x7FFFFFFF), lanes) for value in values]
            while len(sizes) > 1:
                sizes = [bind(T.max(*pair)) for pair in zip(sizes[::2], sizes[1::2], strict=True)]
            place = T.Ramp(0, 1, lanes)
            T.buffer_store(s.most, T.max(s.most[place], sizes[0]), [place])

        def narrow_stages(s, block, together):
            """The stages within `together` vectors that follow each other."""
            values = [bind(vector(s.line, (block * together + a) * lanes)) for a in range(together)]
            distance = spread
            while distance < lanes:
                values = [across(value, distance) for value in values]
                distance *= 2
            values = butterflies(values)
            for a, value in enumerate(values):
                T.buffer_store(s.rotated, value, [T.Ramp((block * together + a) * lanes, 1, lanes)])
            if channels == together * lanes:
                note_sizes(s, values)

        def distant_stages(s, v, together, count):
            """Those of `count` vectors that lie `together` apart."""
            values = butterflies([vector(s.rotated, (a * together + v) * lanes) for a in range(count)])
            for a, value in enumerate(values):
                T.buffer_store(s.rotated, value, [T.Ramp((a * together + v) * lanes, 1, lanes)])
            note_sizes(s, values)

        @inline
        def rotate_narrow(s):
            together = T.meta_var(min(8, channels // lanes))
            count = T.meta_var(channels // lanes // together)
            for block in range(count):
                narrow_stages(s, block, together)
            if count > 1:
                for v in range(together):
                    distant_stages(s, v, together, count)

        @inline
        def rotate(s):
            for block in range(8):
                for v in range(run // lanes):
                    first_stages(s, block, v)
            for block in range(8):
                for v in range(run // lanes):
                    last_stages(s, block, v)

        @inline
        def find_scale(s, scale, to):
            for lane in range(1, lanes):
                s.most[0] = T.max(s.most[0], s.most[lane])
            size: T.let = T.max(T.float32(LEAST), T.reinterpret("float32", s.most[0]))
            scale[to] = T.if_then_else(s.most[0] < INFINITE, size / T.float32(most_level), T.float32("nan"))
            s.factor[0] = T.if_then_else(s.most[0] < INFINITE, T.float32(most_level) / size, T.float32(0))

        @inline
        def round_all(s, q, to):
            for block in range(GROUP if run > spread else 1):
                for v in range(run // lanes if run > spread else channels // lanes):
                    for lane in T.vectorized(lanes):  # of the last vector of a block, the next one writes over what is too much
                        q[to, block * spread + v * lanes + lane] = T.Cast(
                            dtype,
                            T.reinterpret("int32", s.rotated[block * run + v * lanes + lane] * s.factor[0] + T.float32(magic)),
                        )

        @inline
        def emit(x, row, sign, q, to, scale, s):
            for lane in T.vectorized(lanes):
                s.most[lane] = T.int32(0)
            copy(x, row, sign, s)
            clear(s.line, s.most)
            if narrow:
                rotate_narrow(s)
            else:
                rotate(s)
            find_scale(s, scale, to)
            round_all(s, q, to)

        emit(x, row, sign, q, to, scale, scratch)


@dataclass(frozen=True)
class RowScratch:
    """What rounding a row needs."""

    line: tvm.tirx.Buffer  # [channels + lanes], the row times signs
    rotated: tvm.tirx.Buffer  # [64 * run]
    most: tvm.tirx.Buffer  # [lanes], the bits of the largest sizes
    factor: tvm.tirx.Buffer  # [1]


@dataclass(frozen=True)
class Operands:
    """The buffers of a linear layer and what is made of its rows; one that the layer lacks is never read."""

    weight: tvm.tirx.Buffer  # [panels, HEADER + steps, cols]
    bias: tvm.tirx.Buffer  # [Cout]
    residual: tvm.tirx.Buffer  # [N, Cout]
    gate: tvm.tirx.Buffer  # [B, Cout]
    batch_index: tvm.tirx.Buffer  # [N]
    out: tvm.tirx.Buffer  # [N, Cout]
    rows: tvm.tirx.Buffer  # [rows, stride], integers
    scale: tvm.tirx.Buffer  # [rows]
    apart: tvm.tirx.Buffer  # [rows, APART], float32


@cache
def int8_linear(spec: Linear, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Linear`."""
    form, tile = Form.of(isa), tile_of(isa)
    cin, dtype, has_residual, has_gate, has_index = spec.cin, spec.dtype, spec.has_residual, spec.has_gate, spec.has_index
    out_dtype = spec.out_dtype or dtype
    rounding = Rounding(form, cin)
    lanes, cols, tile_rows, half = tile.lanes, tile.cols, tile.rows, (tile.rows + 1) // 2
    steps, stride, offset = rounding.steps, rounding.stride, form.offset
    vector = f"int32x{lanes}"
    last_width = (spec.cout - 1) % cols + 1
    narrow = [last_width] if last_width < cols else []  # panels with code of their own
    lines, per_row = (HEADER + steps) * cols // LINE, cols // LINE  # of a panel, of its rows
    fetches = isa.lanes == 16  # narrow panels are small, and few registers leave no room for what LLVM makes of the loop
    # rows of a task, in whole tiles; with few registers they are read for each few columns, and should stay in any L2 cache
    block_bytes = 3 * L2 // 2 if fetches else 9 * L2 // 16
    block_rows = min(max(block_bytes // (4 * stride), LEAST_ROWS), BLOCK_ROWS) // tile_rows * tile_rows
    act = EMIT[spec.activation]

    def whole_tiles(count):
        """The rows of the register tiles that cover `count` rows."""
        return (count + (tile_rows - 1)) // tile_rows * tile_rows

    def take_apart(x, row, o, to, line, most):
        @inline
        def take(x, row, o, to, line, most):
            for j in range(APART):
                channel: T.let = o.weight[0, CHANNELS, j]
                if channel >= 0:
                    value = T.meta_var(bind(T.Cast("float32", x[row, T.Cast("int64", channel)])))
                    o.apart[to, j] = value
                    line[T.Cast("int64", channel)] = T.float32(0)
                    if (T.reinterpret("int32", value) & T.int32(0x7FFFFFFF)) >= INFINITE:
                        most[0] = T.int32(INFINITE)
                else:
                    o.apart[to, j] = T.float32(0)

        take(x, row, o, to, line, most)

    @inline
    def round_rows(x, sign, q, o, base, first, count):
        scratch = rounding.scratch()
        for i in range(count):
            rounding.round_row(
                x,
                base + first + i,
                sign,
                lambda line, most: take_apart(x, base + first + i, o, first + i, line, most),
                q,
                first + i,
                o.scale,
                scratch,
            )

    @inline
    def clear_part(first, rows, part, vectors):
        for r in T.unroll(rows):
            for v in T.unroll(vectors):
                part[r, T.Ramp(v * lanes, 1, lanes)] = T.Broadcast(T.int32(0), lanes)

    @inline
    def step_part(first, rows, part, vectors, o, row, panel, step):
        for r in T.unroll(rows):
            for v in T.unroll(vectors):
                part[r, T.Ramp(v * lanes, 1, lanes)] = T.call_pure_extern(
                    vector,
                    form.step,
                    part[r, T.Ramp(v * lanes, 1, lanes)],
                    o.weight[panel, HEADER + step, T.Ramp(v * lanes, 1, lanes)],
                    o.rows[row + first + r, step],
                )

    @inline
    def store_part(first, rows, part, vectors, sums):
        for r in T.unroll(rows):
            for v in T.unroll(vectors):
                sums[first + r, T.Ramp(v * lanes, 1, lanes)] = part[r, T.Ramp(v * lanes, 1, lanes)]

    @inline
    def fetch(o, panel, line):
        """Ask for a line of a panel's weights, to be in the L2 cache when the panel's turn comes"""
        if line < lines:
            prefetch(T.address_of(o.weight[panel, line // per_row, line % per_row * LINE]))

    def multiply_tile(rows, vectors, o, row, panel, sums, tile):
        """Emit: sums[:rows] = the products of the rows from `row` on with a panel; a part of the next panel may be fetched."""
        acc = Accumulators(rows, vectors * lanes, lanes, "int32")
        acc.each(lambda first, rows, part: clear_part(first, rows, part, vectors))
        if not fetches:
            with T.serial(0, steps) as step:
                acc.each(lambda first, rows, part: step_part(first, rows, part, vectors, o, row, panel, step))
        else:
            with T.serial(0, steps // FETCH) as group:
                fetch(o, panel + 1, tile * (steps // FETCH) + group)
                with T.serial(0, FETCH) as step:
                    acc.each(
                        lambda first, rows, part: step_part(first, rows, part, vectors, o, row, panel, group * FETCH + step)
                    )
        acc.each(lambda first, rows, part: store_part(first, rows, part, vectors, sums))

    def finished(value, row, column, o):
        """The epilogue of one element."""
        value = value + o.bias[column]
        if has_gate:
            value = value * o.gate[T.Cast("int64", o.batch_index[row]) if has_index else 0, column]
        if has_residual:
            value = value + T.Cast("float32", o.residual[row, column])
        return T.Cast(out_dtype, act(value))

    @inline
    def finish_row(o, base, row, columns, panel, sums, r, apart):
        """out[base + row, :] of one panel, from its sums"""
        value = T.alloc_buffer((cols,), "float32")
        scale: T.let = o.scale[row]
        for v in T.unroll((columns + lanes - 1) // lanes):
            for lane in T.vectorized(lanes):
                value[v * lanes + lane] = T.Cast(
                    "float32",
                    sums[r, v * lanes + lane] - o.weight[panel, CORRECTION, v * lanes + lane]
                    if offset > 0
                    else sums[r, v * lanes + lane],
                ) * (scale * T.reinterpret("float32", o.weight[panel, SCALE, v * lanes + lane]))
        for j in range(apart):
            for v in T.unroll((columns + lanes - 1) // lanes):
                for lane in T.vectorized(lanes):
                    value[v * lanes + lane] += o.apart[row, j] * T.reinterpret(
                        "float32", o.weight[panel, COLUMNS + j, v * lanes + lane]
                    )
        for v in T.unroll(columns // lanes):
            for lane in T.vectorized(lanes):
                o.out[base + row, panel * cols + v * lanes + lane] = finished(
                    value[v * lanes + lane], base + row, panel * cols + v * lanes + lane, o
                )
        for column in T.unroll(columns // lanes * lanes, columns):
            o.out[base + row, panel * cols + column] = finished(value[column], base + row, panel * cols + column, o)

    @inline
    def multiply_panel(columns, o, base, first, count, panel, sums, apart):
        for t in range((count + (tile_rows - 1)) // tile_rows):
            row: T.let = first + t * tile_rows
            here: T.let = T.min(T.int64(tile_rows), count - t * tile_rows)
            if here > half:
                multiply_tile(tile_rows, (columns + lanes - 1) // lanes, o, row, panel, sums, t)
            else:
                multiply_tile(half, (columns + lanes - 1) // lanes, o, row, panel, sums, t)
            for r in range(here):
                finish_row(o, base, row + r, columns, panel, sums, r, apart)

    @inline
    def multiply_task(o, base, first, count, first_panel, end_panel, panels, apart):
        sums = T.alloc_buffer((tile_rows, cols), "int32")
        for panel in range(first_panel, T.min(end_panel, panels - len(narrow))):
            multiply_panel(cols, o, base, first, count, panel, sums, apart)
        if len(narrow) > 0:
            if end_panel == panels:
                multiply_panel(last_width, o, base, first, count, panels - 1, sums, apart)

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
        T.func_attr({"tirx.noalias": True, "global_symbol": name_of("int8_linear", spec, isa)})
        n, cout, panels, batch = T.int64(), T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, cin), dtype)
        weight = match_buffer(weight_, (panels, HEADER + steps, cols), "int32")
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (n, cout), dtype)
        gate = match_buffer(gate_, (batch if has_index else 1, cout), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        out = match_buffer(out_, (n, cout), out_dtype)
        T.attr(T.int32(0), "pragma_import_llvm", form.llvm_ir)
        if has_index:
            check_batch_index(batch_index, n, batch)
        most_rows: T.let = T.min(n, T.int64(CHUNK_ROWS))
        rows = T.alloc_buffer((most_rows + tile_rows, stride), "int32")  # a last tile reads past the last row
        scale = T.alloc_buffer((most_rows,), "float32")
        kept = T.alloc_buffer((most_rows, APART), "float32")
        sign = T.alloc_buffer((rounding.channels,), "float32")
        apart = T.alloc_buffer((1,), "int32")
        q = T.decl_buffer((most_rows + tile_rows, stride * form.per), form.dtype, data=rows.data)
        o = T.meta_var(Operands(weight, bias, residual, gate, batch_index, out, rows, scale, kept))
        rounding.find_signs(sign)
        apart[0] = T.int32(0)
        for j in range(APART):
            apart[0] += T.Select(weight[0, CHANNELS, j] >= 0, T.int32(1), T.int32(0))
        for chunk in range((n + (CHUNK_ROWS - 1)) // CHUNK_ROWS):
            base: T.let = chunk * CHUNK_ROWS
            here: T.let = T.min(n - base, T.int64(CHUNK_ROWS))
            if here <= FEW:
                round_rows(x, sign, q, o, base, T.int64(0), here)
            else:
                for block in T.parallel((here + (TOGETHER - 1)) // TOGETHER):
                    round_rows(x, sign, q, o, base, block * TOGETHER, T.min(T.int64(TOGETHER), here - block * TOGETHER))
            row_blocks: T.let = (here + (block_rows - 1)) // block_rows
            equal: T.let = whole_tiles((here + row_blocks - 1) // row_blocks)  # blocks of about one size
            parts: T.let = T.min(panels, (TASKS + row_blocks - 1) // row_blocks)
            for task in T.parallel(row_blocks * parts):
                part = T.alloc_buffer((4,), "int64")  # in memory, as TVM simplifies such quotients wherever they are used
                part[0] = task // parts * equal
                part[1] = T.max(T.min(equal, here - part[0]), T.int64(0))
                part[2] = task % parts * panels // parts
                part[3] = (task % parts + 1) * panels // parts
                multiply_task(o, base, part[0], part[1], part[2], part[3], panels, apart[0])

    given = {"residual": has_residual, "gate": has_gate, "batch_index": has_index}
    return drop_parameters(kernel, *(name for name, present in given.items() if not present))


def name_of(op: str, spec: Linear, isa: Isa) -> str:
    """`<op>_<instruction>_<dtype>_<rows>x<cols>__<isa>`."""
    tile, short = tile_of(isa), {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[spec.dtype]
    return f"{op}_{isa.integer[0]}_{short}_{tile.rows}x{tile.cols}__{isa.name}"


@cache
def _weight_layout(cin: int, cout: int, dtype: str, isa: Isa) -> WeightLayout:
    form, cols = Form.of(isa), tile_of(isa).cols
    rounding = Rounding(form, cin, weight=True)
    panels, steps, channels = -(-cout // cols), rounding.steps, rounding.channels
    integers = np.dtype(form.weight_dtype)

    def by_column(packed: np.ndarray, first: int, end: int) -> np.ndarray:
        """Rows of the header, a column for each output channel: [rows, Cout]."""
        return packed[:, first:end].transpose(1, 0, 2).reshape(end - first, -1)[:, :cout]

    def unpack(packed: np.ndarray) -> np.ndarray:
        q = np.ascontiguousarray(packed[:, HEADER:].transpose(0, 2, 1)).view(integers).reshape(-1, channels)[:cout]
        scale = by_column(packed, SCALE, SCALE + 1).view(np.float32)[0]
        sign = signs(channels)
        return (rotate(q * scale[:, None] / sign) * sign)[:, :cin]

    def apart(packed: np.ndarray) -> list[int]:
        """The channels that a packed weight keeps apart."""
        return [int(channel) for channel in packed[0, CHANNELS, :APART] if channel >= 0]

    def with_apart(packed: np.ndarray, weight: np.ndarray, channels: Sequence[int]) -> np.ndarray:
        """A copy of `packed` that keeps these input channels of the weight [Cout, Cin] apart, and no others.

        Raises ValueError for more than APART channels, for one twice or that there is not, and for a weight or a packed one of
        another shape.
        """
        channels = [int(channel) for channel in channels]
        for name, given, expected in (("packed", packed, shape), ("weight", weight, (cout, cin))):
            if np.shape(given) != expected:
                raise ValueError(f"{name}: expected the shape {list(expected)}, given {list(np.shape(given))}")
        if len(channels) > APART or len(set(channels)) < len(channels) or not all(0 <= c < cin for c in channels):
            raise ValueError(f"channels: expected at most {APART} distinct ones of 0 to {cin - 1}, given {channels}")
        packed = packed.copy()
        columns = np.zeros((panels * cols, APART), np.float32)
        columns[:cout, : len(channels)] = weight[:, channels].astype(np.float32)
        packed[:, COLUMNS:CHANNELS] = columns.view(np.int32).reshape(panels, cols, APART).transpose(0, 2, 1)
        packed[:, CHANNELS, :APART] = np.array(channels + [-1] * (APART - len(channels)), np.int32)
        return packed

    shape = (panels, HEADER + steps, cols)
    return WeightLayout(shape, "int32", pack_weight(cin, dtype, isa), unpack, with_apart, apart)


def weight_layout(spec: Linear, isa: Isa) -> WeightLayout:
    """int32 [panels, HEADER + steps, cols]."""
    return _weight_layout(spec.cin, spec.cout, spec.dtype, isa)


@cache
def pack_weight(cin: int, dtype: str, isa: Isa) -> tvm.tirx.PrimFunc:
    """PrimFunc (weight `dtype` [Cout, cin], packed int32 [panels, HEADER + steps, cols]); no channel is kept apart."""
    form, cols = Form.of(isa), tile_of(isa).cols
    rounding = Rounding(form, cin, weight=True)
    steps, stride, per, channels = rounding.steps, rounding.stride, form.per, rounding.channels

    @script.prim_func(s_tir=True)
    def kernel(weight_: T.handle, packed_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"pack_{form.name}_weight"})
        cout, panels = T.int64(), T.int64()
        weight = match_buffer(weight_, (cout, cin), dtype)
        packed = match_buffer(packed_, (panels, HEADER + steps, cols), "int32")
        sign = T.alloc_buffer((channels,), "float32")
        rounding.find_signs(sign)
        for panel in T.parallel(panels):
            rows = T.alloc_buffer((cols, stride), "int32")
            scale = T.alloc_buffer((cols,), "float32")
            q = T.decl_buffer((cols, stride * per), rounding.dtype, data=rows.data)
            scratch = rounding.scratch()
            here: T.let = T.min(T.int64(cols), cout - panel * cols)
            for row, column in T.grid(HEADER, cols):
                packed[panel, row, column] = T.int32(-1) if row == CHANNELS else T.int32(0)
            for column in range(here):
                rounding.round_row(weight, panel * cols + column, sign, lambda line, most: None, q, column, scale, scratch)
                packed[panel, SCALE, column] = T.reinterpret("int32", scale[column] * T.float32(GROUP))
                for c in range(channels):
                    packed[panel, CORRECTION, column] += T.int32(form.offset) * T.Cast("int32", q[column, c])
            for step in range(steps):
                for column in range(here):
                    packed[panel, HEADER + step, column] = rows[column, step]
                for column in range(cols - here):
                    packed[panel, HEADER + step, here + column] = T.int32(0)

    return kernel
