"""Products of matrices on tensor cores: the loop that all kernels of products share, and how its sums leave the registers.

A block of threads owns a tile of the result. In steps, `depth` channels of one tap at a time, it copies rows of x and of the
weight into shared memory, which both keep their channels side by side, and multiplies them there. Copies run stages ahead
(`cp.async`); what is not there, a row without a neighbour or channels past the last, is filled with zeros.

A chunk is 16 bytes. Chunks of a row lie in an order that depends on the row (`swizzle`), so that the eight rows that one
`ldmatrix` reads, and the lines that threads write, fall in different banks.

Sums are float32. float32 itself is multiplied as three products of TF32: each factor is a number of 11 bits and a rest, and
only the product of the rests is dropped. Tensor cores cut off where they add, so what eight channels give begins at zero and is
added to the sums by an addition that rounds. On request it is one product, of the factors rounded to 11 bits.

Zeros that stand for nothing, and rests of infinite numbers, make NaN of infinities. So sums that are NaN are made again, one
product at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import tvm
from tvm.script import tirx as T

from ..spec import Spec
from ..spec.linear import TF32
from .gpu import WARP, Gpu
from .shared_memory import copy_elements, load, load_vector, store_pair
from .shared_memory import store as store_one
from .vectors import BYTES as CHUNK
from .vectors import width

MMA = {
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "float32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
}
LOAD_FRAGMENT = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
ROUND = "cvt.rna.tf32.f32"
COPY = "cp.async.cg.shared.global"
VECTOR = 4  # columns that a thread finishes at once
PADDING = 8  # columns between staged rows, which puts the rows of a fragment into different banks


@dataclass(frozen=True)
class Tile:
    """rows x cols of the result, for a block of `warps` (down, across); rows of `row_bytes` in `stages` stages.

    `registers`: the most that a thread of any kernel with this tile takes.
    """

    cols: int
    warps: tuple[int, int]
    registers: int
    row_bytes: int = 64
    stages: int = 3
    rows: int = 128

    @property
    def threads(self) -> int:
        return self.warps[0] * self.warps[1] * WARP

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


@dataclass(frozen=True)
class Operand:
    """One factor: `buffer`, and `at(row, channel)`, the indices of a channel of a row, which may be the rows of one tap."""

    buffer: tvm.tirx.Buffer
    at: Callable


@dataclass(frozen=True)
class Steps:
    """What a block sums: the steps from `begin` to `end`; tap `i` of those it meets is `tap(i)`.

    source(tap, r): the row of x for row r of the tile, or -1; `row_dtype`: of these rows. Steps go tap by tap.
    """

    begin: tvm.tirx.Expr  # int32
    end: tvm.tirx.Expr  # int32
    tap: Callable
    source: Callable
    row_dtype: str = "int32"


@dataclass(frozen=True)
class Gemm:
    """The products of a tile: `dtype` of the factors; `channels` summed for each tap; `products`: "float" or "tf32"."""

    tile: Tile
    dtype: str
    channels: int
    products: str = "float"

    @property
    def of(self) -> str:
        """What is multiplied, for the name of a kernel."""
        return self.dtype if self.products == "float" else self.products

    @property
    def vector(self) -> int:
        """Channels of a chunk."""
        return width(self.dtype)

    @property
    def chunks(self) -> int:
        """Chunks of a row of a step."""
        return self.tile.row_bytes // CHUNK

    @property
    def depth(self) -> int:
        """Channels of a step."""
        return self.chunks * self.vector

    @property
    def steps(self) -> int:
        """Steps of a tap."""
        return max(1, -(-self.channels // self.depth))

    @property
    def in_chunks(self) -> bool:
        """Whether rows are whole chunks."""
        return self.channels % self.vector == 0

    @property
    def warp_rows(self) -> int:
        return self.tile.rows // self.tile.warps[0]

    @property
    def warp_cols(self) -> int:
        return self.tile.cols // self.tile.warps[1]

    def allocate(self):
        """Shared memory: rows of x, then rows of the weight, for every stage; and the sums of a thread."""
        tile = self.tile
        shape = (tile.stages, tile.rows + tile.cols, self.depth)
        # static memory ends at 48 KiB
        scope = "shared" if tile.stages * (tile.rows + tile.cols) * tile.row_bytes <= 48 * 1024 else "shared.dyn"
        shared = T.alloc_buffer(shape, self.dtype, scope=scope, align=128)
        sums = T.alloc_buffer((self.warp_rows // 16, self.warp_cols // 8, 4), "float32", scope="local")
        return shared, sums

    def multiply(self, shared, sums, thread, steps: Steps, x: Operand, weight: Operand, columns, fast) -> None:
        """Emit: sums = the products of the steps.

        `columns`: how many rows of the weight there are for this tile; `fast`: whether chunks are aligned.
        """
        tile, chunks, of_tap = self.tile, self.chunks, self.steps
        lines = tile.threads // chunks  # rows that all threads copy at once
        passes_x, passes_weight = tile.rows // lines, -(-tile.cols // lines)
        line, chunk = T.bind(thread // chunks), T.bind(thread % chunks)
        rows = T.alloc_buffer((passes_x,), steps.row_dtype, scope="local")
        ahead = T.alloc_buffer((passes_x,), steps.row_dtype, scope="local")  # the rows of the next tap, which are on their way
        tap = T.alloc_buffer((2,), "int32", scope="local")  # this one, the next one
        place = T.bind(self._swizzled(chunk, line % 8) * self.vector)

        def look(i):
            T.buffer_store(tap, steps.tap(i), [1])
            for j in range(passes_x):
                T.buffer_store(ahead, steps.source(tap[1], line + j * lines), [j])

        def next_tap(it):
            T.buffer_store(tap, tap[1], [0])
            for j in range(passes_x):
                T.buffer_store(rows, ahead[j], [j])
            with T.If((it // of_tap + 1) * of_tap < steps.end), T.Then():
                look(it // of_tap + 1)

        def load(it, stage):
            if of_tap == 1:
                next_tap(it)
            else:
                with T.If(T.Or(it % of_tap == 0, it == steps.begin)), T.Then():
                    next_tap(it)
            channel = T.bind(it % of_tap * self.depth + chunk * self.vector)
            for j in range(passes_x):
                self._copy(shared, stage, line + j * lines, place, x, rows[j], rows[j] >= 0, channel, fast)
            for j in range(passes_weight):
                column = line + j * lines
                if tile.cols % lines:  # more threads than rows
                    with T.If(column < tile.cols), T.Then():
                        own = Operand(weight.buffer, lambda row, c: weight.at(tap[0], row, c))
                        self._copy(shared, stage, tile.rows + column, place, own, column, column < columns, channel, fast)
                else:
                    own = Operand(weight.buffer, lambda row, c: weight.at(tap[0], row, c))
                    self._copy(shared, stage, tile.rows + column, place, own, column, column < columns, channel, fast)

        with T.unroll(self.warp_rows // 16) as i, T.unroll(self.warp_cols // 8) as j, T.unroll(4) as k:
            T.buffer_store(sums, T.float32(0), [i, j, k])
        with T.If(steps.begin < steps.end), T.Then():
            look(steps.begin // of_tap)
        # One loop fills the stages, and then multiplies as many steps behind: its body stands once.
        behind = tile.stages - 1
        with T.serial(0, steps.end - steps.begin + behind) as i:
            T.evaluate(T.ptx.cp.async_.wait_group(behind - 1))
            T.evaluate(T.cuda.cta_sync())
            it = T.bind(steps.begin + i)
            with T.If(it < steps.end), T.Then():
                load(it, i % tile.stages)
            T.evaluate(T.ptx.cp.async_.commit_group())
            with T.If(i >= behind), T.Then():
                self._multiply_stage(shared, (i + 1) % tile.stages, sums, thread)  # `behind` steps back
        T.evaluate(T.ptx.cp.async_.wait_group(0))

    def _swizzled(self, chunk, row):
        """The place of a chunk in a row, of which only the number within eight matters."""
        return chunk ^ (row // max(1, 8 // self.chunks) % self.chunks)

    def _copy(self, shared, stage, target, place, operand: Operand, row, present, channel, fast) -> None:
        """Emit: one chunk of a row into shared memory, zeros where it is not there."""

        exact = self.channels == self.steps * self.depth
        first = channel if exact else T.min(channel, max(self.channels - 1, 0))
        source = operand.buffer.ptr_to(operand.at(T.max(row, 0), first))
        to = shared.ptr_to([stage, target, place])

        def whole():
            there = present if exact else T.And(present, channel < self.channels)
            T.evaluate(T.ptx[COPY](to, source, CHUNK, T.if_then_else(there, T.uint32(CHUNK), T.uint32(0))))

        def one_by_one():
            size = tvm.DataType(self.dtype).itemsize
            copy_elements(to, source, size, T.if_then_else(present, self.channels - channel, 0))

        if not self.in_chunks:
            one_by_one()
            return
        with T.If(fast):
            with T.Then():
                whole()
            with T.Else():
                one_by_one()

    def _multiply_stage(self, shared, stage, sums, thread) -> None:
        """Emit: sums += the products of a stage."""
        down, across = self.warp_rows // 16, self.warp_cols // 8
        warp, lane = thread // WARP, thread % WARP
        first_row = T.bind(warp // self.tile.warps[1] * self.warp_rows + lane % 16)
        first_column = T.bind(self.tile.rows + warp % self.tile.warps[1] * self.warp_cols + lane // 16 * 8 + lane % 8)
        a = T.alloc_buffer((down, 4), "uint32", scope="local")
        b = T.alloc_buffer((across // 2, 4), "uint32", scope="local")
        for k in range(self.chunks // 2):
            of_x = T.bind(self._swizzled(2 * k + lane // 16, lane % 8) * self.vector)
            of_weight = T.bind(self._swizzled(2 * k + lane // 8 % 2, lane % 8) * self.vector)
            with T.unroll(down) as i:
                words = (a[i, word] for word in range(4))
                T.evaluate(T.ptx[LOAD_FRAGMENT](*words, shared.ptr_to([stage, first_row + i * 16, of_x])))
            with T.unroll(across // 2) as j:
                words = (b[j, word] for word in range(4))
                T.evaluate(T.ptx[LOAD_FRAGMENT](*words, shared.ptr_to([stage, first_column + j * 16, of_weight])))
            if self.of == "float32":
                self._add_split(sums, a, b)
                continue
            if self.of == TF32:
                self._round(a, down)
                self._round(b, across // 2)
            self._add(sums, a, b)

    def _mma(self, sums, at, a, i, b, j) -> None:
        """Emit: 16 x 8 sums += one product."""
        own = [sums[(*at, k)] for k in range(4)]
        words = [a[i, word] for word in range(4)], [b[j // 2, j % 2 * 2 + word] for word in range(2)]
        T.evaluate(T.ptx[MMA[self.dtype]](*own, *words[0], *words[1], *own))

    @staticmethod
    def _round(words, count: int) -> None:
        """Emit: float32 to the nearest number of 11 bits; what is larger than all of them becomes infinite."""
        with T.unroll(count) as i, T.unroll(4) as word:
            T.evaluate(T.ptx[ROUND](words[i, word], T.reinterpret("float32", words[i, word])))

    def _add(self, sums, a, b) -> None:
        with T.unroll(self.warp_rows // 16) as i, T.unroll(self.warp_cols // 8) as j:
            self._mma(sums, (i, j), a, i, b, j)

    def _add_split(self, sums, a, b) -> None:
        """The same for float32, by three products of TF32, of which the smallest come first."""
        down, across = self.warp_rows // 16, self.warp_cols // 8
        rest_a = T.alloc_buffer((down, 4), "uint32", scope="local")
        rest_b = T.alloc_buffer((across // 2, 4), "uint32", scope="local")
        nearest = T.alloc_buffer((1,), "uint32", scope="local")
        for words, rests, count in ((a, rest_a, down), (b, rest_b, across // 2)):
            with T.unroll(count) as i, T.unroll(4) as word:
                high = (words[i, word] + T.uint32(0x1000)) & T.uint32(0xFFFFE000)  # to the nearest number of 11 bits
                T.buffer_store(nearest, high, [0])
                rest = T.reinterpret("float32", words[i, word]) - T.reinterpret("float32", nearest[0])
                T.buffer_store(rests, T.reinterpret("uint32", rest), [i, word])
                T.buffer_store(words, nearest[0], [i, word])
        product = T.alloc_buffer((4,), "float32", scope="local")
        with T.unroll(down) as i, T.unroll(across) as j:
            for k in range(4):
                T.buffer_store(product, T.float32(0), [k])
            self._mma(product, (), rest_a, i, b, j)
            self._mma(product, (), a, i, rest_b, j)
            self._mma(product, (), a, i, b, j)
            for k in range(4):
                T.buffer_store(sums, sums[i, j, k] + product[k], [i, j, k])

    def again(self, steps: Steps, x: Operand, weight: Operand, r, column, value) -> None:
        """Emit: value[0] = the sum of row r and a column of the tile, one product at a time."""
        T.buffer_store(value, T.float32(0), [0])
        with T.serial(0, steps.end - steps.begin) as i:
            it = T.bind(steps.begin + i)
            tap = T.bind(steps.tap(it // self.steps))
            row = T.bind(steps.source(tap, r))
            first = T.bind(it % self.steps * self.depth)
            with T.If(row >= 0), T.Then():
                with T.serial(0, T.min(self.depth, self.channels - first)) as c:
                    factors = x.buffer[tuple(x.at(row, first + c))], weight.buffer[tuple(weight.at(tap, column, first + c))]
                    product = T.Cast("float32", factors[0]) * T.Cast("float32", factors[1])
                    T.buffer_store(value, value[0] + product, [0])

    def finish(self, shared, sums, thread, again: Callable, store: Callable, columns, along_rows: bool = False) -> None:
        """Emit: hand the sums of the tile to `store`, which finishes them, `VECTOR` columns of a row at a time.

        store(r, column, values): `values` float32 [VECTOR], local. again(r, column, value): see `again`. The sums pass through
        shared memory, where each warp has a place of its own, so that threads side by side store side by side: columns of a
        row, or rows of a column if `along_rows`.
        """
        warp, lane = T.bind(thread // WARP), T.bind(thread % WARP)
        count = self.tile.warps[0] * self.tile.warps[1]
        width = self.warp_cols + PADDING
        assert count * 16 * width * 4 <= self.tile.stages * (self.tile.rows + self.tile.cols) * self.tile.row_bytes
        staged, own = shared.ptr_to([0, 0, 0]), T.bind(warp * (16 * width))  # [warps, 16, width]
        values = T.alloc_buffer((VECTOR,), "float32", scope="local")
        value = T.alloc_buffer((1,), "float32", scope="local")
        T.evaluate(T.cuda.cta_sync())
        across = self.warp_cols // VECTOR  # vectors of a row
        with T.unroll(self.warp_rows // 16) as i:
            T.evaluate(T.cuda.warp_sync())
            with T.unroll(self.warp_cols // 8) as j:
                for half in range(2):
                    place = own + (half * 8 + lane // 4) * width + j * 8 + lane % 4 * 2
                    store_pair(staged, place, sums[i, j, half * 2], sums[i, j, half * 2 + 1])
            T.evaluate(T.cuda.warp_sync())
            with T.serial(0, 16 * across // WARP) as v:
                place = T.bind(v * WARP + lane)
                r = T.bind(place % 16 if along_rows else place // across)
                first = T.bind((place // 16 if along_rows else place % across) * VECTOR)
                row = T.bind(warp // self.tile.warps[1] * self.warp_rows + i * 16 + r)
                column = T.bind(warp % self.tile.warps[1] * self.warp_cols + first)
                at = T.bind(own + r * width + first)
                load_vector(values, staged, at)
                # infinities of both signs pass here too, and are left as they are
                with T.If(T.isnan(values[0] + values[1] + values[2] + values[3])), T.Then():
                    with T.serial(0, VECTOR) as e:
                        T.buffer_store(value, load(staged, at + e), [0])
                        with T.If(T.And(T.isnan(value[0]), column + e < columns)), T.Then():
                            again(row, column + e, value)
                            store_one(staged, at + e, value[0])
                    load_vector(values, staged, at)
                with T.If(column < columns), T.Then():
                    store(row, column, values)


# Tiles, the narrowest first. Registers are the most that nvcc 13.0 reports for sm_80, sm_90 and sm_120; beside each tile those
# of `implicit_gemm` with silu, of float16 in the first list. Linear layers and dense convolutions of float32 take a few more.
NARROW_TYPES = (
    Tile(32, (4, 1), 125),  # 100, 80, 125
    Tile(64, (2, 2), 156),  # 132, 132, 156
    Tile(128, (2, 2), 238),  # 229, 229, 238: two blocks a processor
)
FLOAT32 = (
    Tile(32, (4, 1), 167),  # 118, 116, 160; 167 of the transposed convolution, at three blocks a processor as 160 is
    Tile(64, (2, 2), 254),  # 162, 168, 246
)


def tile_for(columns: int, dtype: str) -> Tile:
    """The tile for a result of so many columns: the narrowest that has them, or the widest."""
    tiles = FLOAT32 if dtype == "float32" else NARROW_TYPES
    return next((tile for tile in tiles if columns <= tile.cols), tiles[-1])


def products_of(spec: Spec) -> str:
    """How factors are multiplied: "tf32" of float32 that asks for it, else "float"."""
    return TF32 if spec.products == TF32 and spec.dtype == "float32" else "float"


def shared(spec: Spec, gpu: Gpu) -> Spec:
    """One kernel where `products` change nothing."""
    return replace(spec, products=products_of(spec))
