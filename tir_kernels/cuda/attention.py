"""Attention without a matrix of all pairs (Dao et al., arXiv:2205.14135).

A block is a tile of queries of one segment and one head. It walks the keys in tiles, keeping as the state of each query a
level, the largest logit so far, the sum of exponentials above it, and the weighted sum of values. Rows of k and v go straight
into shared memory, in any order, while the tile before is computed.

Of 16-bit types both products are those of tensor cores, and the weights are rounded to that type. Of float32 they are exact
products in registers: in parts of 11 bits an infinite logit would be none, and only on sm_80 they would be faster.

The keys of a segment with few queries are cut into parts, by the numbers of its queries and keys and of heads alone; a launch
more merges their states in order. So bits do not depend on other segments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import NOWHERE, RAISE_REPEATED_ROW, RAISE_ROW
from ..script import drop_parameters, inline
from ..spec.attention import Attention
from ..vector_math import LOG2_E
from .atomics import atomic_min
from .gpu import MOST_STATIC, WARP, Gpu, kernel_name, stating
from .guards import match_status, report, reporting
from .launch import for_each, left_to_nvcc
from .reductions import add, over_lanes
from .segments import cut_segments
from .vectors import aligned, width

MOST_DEPTH = 128  # of tiles in shared memory; deeper heads are read again and again from cache
PART = 512  # keys of a part, at least
FEW = 256  # blocks of a segment, from which on its keys are not cut
LEAST = float(np.finfo("float32").min)
ITEM = 6  # of a block: first query, queries, first key, keys, part, parts

_EXP2 = """
__forceinline__ __device__ float tir_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
"""
_PACK = {
    "float16": """
__forceinline__ __device__ uint32_t tir_pack_f16(float low, float high) {
  __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&pair);
}
""",
    "bfloat16": """
__forceinline__ __device__ uint32_t tir_pack_bf16(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&pair);
}
""",
}
_SHORT = {"float16": "f16", "bfloat16": "bf16"}


def exp2(x):
    """2^x within 2 ulp, 0 below 2^-126."""
    return T.cuda.func_call("tir_exp2", x, source_code=_EXP2, return_type="float32")


def pack(low, high, dtype: str):
    """Two float32 rounded to a 16-bit type, in one uint32."""
    return T.cuda.func_call(f"tir_pack_{_SHORT[dtype]}", low, high, source_code=_PACK[dtype], return_type="uint32")


def is_row(entry, rows):
    """Whether an entry of an order is one of `rows` rows."""
    return T.And(entry >= 0, T.Cast("int64", entry) < rows)


def larger(a, b):
    """The larger of two numbers; of a number and NaN, the number."""
    return T.call_pure_extern("float32", "fmaxf", a, b)


@dataclass(frozen=True)
class Tile:
    """How a block shares its work: `queries` and `keys` of a tile, `threads`; `channels`: the depth, padded.

    `registers`: the most that a thread takes.
    """

    queries: int
    keys: int
    threads: int
    channels: int
    dtype: str
    registers: int

    @property
    def chunk(self) -> int:
        """Elements that are copied at once, 16 bytes."""
        return width(self.dtype)

    @property
    def pitch(self) -> int:
        """Elements from a row in shared memory to the next: an odd number of chunks, so that eight rows use different banks."""
        return self.channels + self.chunk

    @property
    def turns(self) -> int:
        """Chunks of a tile of keys that a thread copies."""
        return -(-self.keys * self.channels // self.chunk // self.threads)


def tile_for(depth: int, dtype: str) -> Tile:
    """For heads of `depth`. Registers are the most that nvcc 13.0 reports for sm_80, sm_90 and sm_120, with orders and without.

    Beside each tile those of one depth, for each of the three.
    """
    if depth > MOST_DEPTH:
        return Tile(16, 32, 128, depth, dtype, 64)  # of depth 256: 64, 64, 64
    if dtype == "float32":
        channels = -(-depth // 32) * 32
        if channels <= 64:
            return Tile(64, 32, 128, channels, dtype, 147)  # of depth 64: 144, 128, 147
        return Tile(32, 16, 64, channels, dtype, 238)  # of depth 128: 174, 166, 238
    channels = -(-depth // 16) * 16
    if channels <= 64:
        return Tile(128, 64, 128, channels, dtype, 255)  # of depth 64: 255, 248, 242, two blocks a processor
    return Tile(128, 32, 256, channels, dtype, 174)  # of depth 128: 174, 166, 174


@inline
def clear(places, place):
    """No place is known."""
    places[place] = T.int64(NOWHERE)


@inline
def note_q_row(q_order, nq, first, wrong, place):
    """The first place of the row at a place of q_order, or that it is none."""
    if is_row(q_order[place], nq):
        T.evaluate(atomic_min(first, T.Cast("int64", q_order[place]), place))
    else:
        T.evaluate(atomic_min(wrong, 0, place))


@inline
def note_repeated_row(q_order, nq, first, wrong, place):
    """Whether the row at a place of q_order stands there before."""
    if is_row(q_order[place], nq):
        if first[T.Cast("int64", q_order[place])] != place:
            T.evaluate(atomic_min(wrong, 1, place))


@inline
def note_k_row(k_order, nk, wrong, place):
    """Whether a place of k_order is no row."""
    if T.Not(is_row(k_order[place], nk)):
        T.evaluate(atomic_min(wrong, 2, place))


@inline
def find_wrong_rows(has_q_order, has_k_order, q_order, k_order, nq, mk, nk, first, wrong):
    """wrong[0 .. 2] = the first place in q_order of no row, or of a row that stands there before, and in k_order of no row.

    NOWHERE where all is well. `first` [nq]: the first place of each row of q.
    """
    for_each(T.int64(3), lambda place: clear(wrong, place))
    if has_q_order:
        for_each(nq, lambda place: clear(first, place))
        for_each(nq, lambda place: note_q_row(q_order, nq, first, wrong, place))
        for_each(nq, lambda place: note_repeated_row(q_order, nq, first, wrong, place))
    if has_k_order:
        for_each(mk, lambda place: note_k_row(k_order, nk, wrong, place))


@inline
def refuse_wrong_rows(status, has_q_order, has_k_order, q_order, k_order, nq, nk, wrong):
    """Report, by one thread, what `find_wrong_rows` found."""
    if has_q_order:
        if wrong[0] != T.int64(NOWHERE):
            report(status, RAISE_ROW, "q_order", wrong[0], q_order[wrong[0]], nq)
        if wrong[1] != T.int64(NOWHERE):
            report(status, RAISE_REPEATED_ROW, "q_order", wrong[1], q_order[wrong[1]])
    if has_k_order:
        if wrong[2] != T.int64(NOWHERE):
            report(status, RAISE_ROW, "k_order", wrong[2], k_order[wrong[2]], nk)


@cache
def attention(spec: Attention, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Attention`."""
    heads, depth, dtype, has_q_order, has_k_order = spec.heads, spec.depth, spec.dtype, spec.has_q_order, spec.has_k_order
    is_empty = heads * depth == 0
    tile = tile_for(max(depth, 1), dtype)
    factor = LOG2_E * (max(depth, 1) ** -0.5 if spec.scale is None else spec.scale)  # softmax in powers of two
    if depth > MOST_DEPTH:
        walk = _of_any_depth(spec, tile, factor)
    else:
        walk = (_with_tensor_cores if dtype in _SHORT else _with_products)(spec, tile, factor)

    def tiles_of(q_offsets, b):
        return (q_offsets[b + 1] - q_offsets[b] + (tile.queries - 1)) // tile.queries

    def parts_of(q_offsets, k_offsets, b):
        blocks = tiles_of(q_offsets, b) * max(heads, 1)
        keys = k_offsets[b + 1] - k_offsets[b]
        return T.if_then_else(
            T.And(keys >= 2 * PART, T.And(blocks > 0, blocks < FEW)),
            T.min(keys // PART, (FEW + blocks - 1) // T.max(blocks, 1)),
            1,
        )

    @inline
    def list_item(q_offsets, k_offsets, items, item, b, i):
        parts: T.let = parts_of(q_offsets, k_offsets, b)
        part: T.let = i % parts
        first: T.let = i // parts * tile.queries
        keys: T.let = k_offsets[b + 1] - k_offsets[b]
        key_tiles: T.let = (keys + (tile.keys - 1)) // tile.keys
        # The first parts have a tile more where they cannot all have as many.
        first_key: T.let = (key_tiles // parts * part + T.min(part, key_tiles % parts)) * tile.keys
        end: T.let = (key_tiles // parts * (part + 1) + T.min(part + 1, key_tiles % parts)) * tile.keys
        items[item, 0] = q_offsets[b] + first
        items[item, 1] = T.min(q_offsets[b + 1] - q_offsets[b] - first, tile.queries)
        items[item, 2] = k_offsets[b] + first_key
        items[item, 3] = T.min(keys, end) - first_key
        items[item, 4] = part
        items[item, 5] = parts

    def q_row(q_order, position):
        return T.Cast("int64", q_order[position]) if has_q_order else T.Cast("int64", position)

    @inline
    def merge(q_order, items, kept_sums, kept_level, kept_total, out, item, h, thread, of):
        """out of a tile whose keys were cut: the parts follow each other."""
        for turn in range(tile.queries * depth // tile.threads + 1):
            place: T.let = turn * tile.threads + thread
            i: T.let = place // depth
            c: T.let = place % depth
            level = T.alloc_local((1,), "float32")
            total = T.alloc_local((1,), "float32")
            sum_ = T.alloc_local((1,), "float32")
            decay = T.alloc_local((1,), "float32")
            if T.And(T.And(of[4] == 0, of[5] > 1), i < of[1]):
                level[0] = T.float32(LEAST)
                for part in range(of[5]):
                    level[0] = larger(level[0], kept_level[(T.Cast("int64", item) + part) * heads + h, i])
                total[0] = T.float32(0)
                sum_[0] = T.float32(0)
                for part in range(of[5]):
                    state: T.let = (T.Cast("int64", item) + part) * heads + h
                    decay[0] = exp2((kept_level[state, i] - level[0]) * T.float32(factor))
                    total[0] += kept_total[state, i] * decay[0]
                    sum_[0] += kept_sums[state, i, c] * decay[0]
                out[q_row(q_order, of[0] + i), h, c] = T.Cast(dtype, sum_[0] / total[0])

    @inline
    def read_item(items, first_item, segments, item, of):
        """of [ITEM]: what a block has to do; nothing, where there are more blocks than items."""
        for i in T.unroll(ITEM):
            of[i] = 0
        if item < first_item[segments]:
            for i in T.unroll(ITEM):
                of[i] = items[item, i]

    @script.prim_func(s_tir=True)
    def kernel(
        q_: T.handle,
        k_: T.handle,
        v_: T.handle,
        q_offsets_: T.handle,
        k_offsets_: T.handle,
        q_order_: T.handle,
        k_order_: T.handle,
        status_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("attention", dtype, f"{tile.queries}x{tile.keys}")})
        nq, nk, mk, batch = T.int64(), T.int64(), T.int64(), T.int64()
        q = match_buffer(q_, (nq, heads, depth), dtype)
        k = match_buffer(k_, (nk, heads, depth), dtype)
        v = match_buffer(v_, (nk, heads, depth), dtype)
        q_offsets = match_buffer(q_offsets_, (batch,), "int32")
        k_offsets = match_buffer(k_offsets_, (batch,), "int32")
        q_order = match_buffer(q_order_, (nq,), "int32")
        k_order = match_buffer(k_order_, (mk,), "int32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (nq, heads, depth), dtype)
        first = T.alloc_buffer((nq if has_q_order else 1,), "int64")
        wrong = T.alloc_buffer((3,), "int64")
        orders = T.meta_var((has_q_order, has_k_order, q_order, k_order))
        if has_q_order or has_k_order:
            find_wrong_rows(*orders, nq, mk if has_k_order else T.int64(0), nk, first, wrong)
        picked: T.let = mk if has_k_order else nk
        # Segments whose keys are cut have twice as many as a part, and get FEW / heads more items each, at most.
        more: T.let = T.min(batch - 1, picked // (2 * PART)) * (FEW // max(heads, 1) + 1)
        most: T.let = nq // tile.queries + batch + more
        is_cut: T.let = T.And(picked >= 2 * PART, T.Or(batch > 2, (nq + (tile.queries - 1)) // tile.queries * heads < FEW))
        states: T.let = T.if_then_else(is_cut, most * heads, T.int64(1))
        first_item = T.alloc_buffer((batch,), "int32")
        items = T.alloc_buffer((most, ITEM), "int32")
        kept_sums = T.alloc_buffer((states, tile.queries, max(depth, 1)), "float32")
        kept_level = T.alloc_buffer((states, tile.queries), "float32")
        kept_total = T.alloc_buffer((states, tile.queries), "float32")
        segments: T.let = T.Cast("int32", batch - 1)
        cut_segments(
            status,
            [("q_offsets", q_offsets, nq), ("k_offsets", k_offsets, picked)],
            segments,
            lambda b: tiles_of(q_offsets, b) * parts_of(q_offsets, k_offsets, b),
            first_item,
            lambda item, b, i: list_item(q_offsets, k_offsets, items, item, b, i),
            lambda: refuse_wrong_rows(status, *orders, nq, nk, wrong),
        )
        if not is_empty:
            with T.launch_thread("blockIdx.x", most) as block:
                h = T.launch_thread("blockIdx.y", heads)
                thread = T.launch_thread("threadIdx.x", tile.threads)
                left_to_nvcc()
                of = T.alloc_local((ITEM,), "int32")
                item: T.let = T.Cast("int32", block)
                read_item(items, first_item, segments, item, of)
                walk(q, k, v, q_order, k_order, out, kept_sums, kept_level, kept_total, item, h, thread, of)
            if is_cut:
                with T.launch_thread("blockIdx.x", most) as block:
                    h = T.launch_thread("blockIdx.y", heads)
                    thread = T.launch_thread("threadIdx.x", tile.threads)
                    of = T.alloc_local((ITEM,), "int32")
                    item: T.let = T.Cast("int32", block)
                    read_item(items, first_item, segments, item, of)
                    merge(q_order, items, kept_sums, kept_level, kept_total, out, item, h, thread, of)

    given = {"q_order": has_q_order, "k_order": has_k_order}
    kernel = drop_parameters(kernel, *(name for name, present in given.items() if not present))
    return stating(reporting(kernel), tile.registers)


@dataclass(frozen=True)
class _Copies:
    """How rows of k or v come into shared memory: in chunks by cp.async, or by elements where they are not aligned to it."""

    tile: Tile
    depth: int
    has_order: bool

    @property
    def in_chunks(self) -> bool:
        return self.depth % self.tile.chunk == 0

    def at(self, stage, row, c):
        """Where an element of a tile is in shared memory, which is flat: TVM would take the padding out of rows."""
        return (stage * self.tile.keys + row) * self.tile.pitch + c

    def place(self, turn, thread):
        """Row and first channel of the chunk that a thread copies in a turn."""
        per_row = self.tile.channels // self.tile.chunk
        index = turn * self.tile.threads + thread
        return index // per_row, index % per_row * self.tile.chunk

    def find_rows(self, rows, k_order, of, t, thread):
        """rows[turn] = the row of k and v that a thread copies chunks of in tile t, -1 past the last key."""
        tile, has_order, copies = self.tile, self.has_order, self

        @inline
        def find(rows, k_order, of, t, thread):
            for turn in T.unroll(tile.turns):
                key: T.let = t * tile.keys + copies.place(turn, thread)[0]
                rows[turn] = -1
                if key < of[3]:
                    rows[turn] = k_order[of[2] + key] if has_order else of[2] + key

        find(rows, k_order, of, t, thread)

    def copy(self, x, shared, stage, rows, k_order, of, h, t, thread, is_aligned):
        """A stage of `shared` = rows of tile t of x, and zeros."""
        tile, depth, copies, has_order = self.tile, self.depth, self, self.has_order
        last = max(depth - tile.chunk, 0)

        def size(row, c):
            return T.if_then_else(T.And(row >= 0, c < depth), T.uint32(16), T.uint32(0))

        @inline
        def copy_chunk(x, shared, rows, h, turn, r, c):
            T.ptx["cp.async.cg.shared.global"](
                shared.ptr_to([copies.at(stage, r, c)]),
                x.ptr_to([T.Cast("int64", T.max(rows[turn], 0)), h, T.min(c, last)]),
                16,
                size(rows[turn], c),
            )

        @inline
        def copy_chunks(x, shared, rows, h, thread):
            for turn in T.unroll(tile.turns):
                if tile.keys * tile.channels // tile.chunk % tile.threads == 0:
                    copy_chunk(x, shared, rows, h, turn, *copies.place(turn, thread))
                else:
                    if copies.place(turn, thread)[0] < tile.keys:
                        copy_chunk(x, shared, rows, h, turn, *copies.place(turn, thread))

        @inline
        def copy_elements(x, shared, k_order, of, h, t, thread):
            for turn in range(tile.keys * tile.channels // tile.threads):
                index: T.let = turn * tile.threads + thread
                r: T.let = index // tile.channels
                c: T.let = index % tile.channels
                shared[copies.at(stage, r, c)] = T.Cast(tile.dtype, 0)
                if T.And(t * tile.keys + r < of[3], c < depth):
                    row: T.let = k_order[of[2] + t * tile.keys + r] if has_order else of[2] + t * tile.keys + r
                    shared[copies.at(stage, r, c)] = x[T.Cast("int64", row), h, c]

        if self.in_chunks:
            with T.If(is_aligned):
                with T.Then():
                    copy_chunks(x, shared, rows, h, thread)
                with T.Else():
                    copy_elements(x, shared, k_order, of, h, t, thread)
        else:
            copy_elements(x, shared, k_order, of, h, t, thread)


def commit():
    """Emit: what was copied since the last one is one group."""
    T.evaluate(T.ptx.cp.async_.commit_group())


def wait():
    """Emit: all copies of this thread have landed, and then of all threads of the block."""
    T.evaluate(T.ptx.cp.async_.wait_group(0))
    T.evaluate(T.tvm_storage_sync("shared"))


def _with_tensor_cores(spec: Attention, tile: Tile, factor: float) -> Callable:
    """The walk of a block along the keys, for 16-bit types: a warp takes 16 or 32 queries."""
    depth, dtype, has_q_order = spec.depth, spec.dtype, spec.has_q_order
    copies = _Copies(tile, depth, spec.has_k_order)
    warp_queries = tile.queries // (tile.threads // WARP)
    high, steps, key_groups, channel_groups = warp_queries // 16, tile.channels // 16, tile.keys // 8, tile.channels // 8
    short = _SHORT[dtype]
    MMA = f"mma.sync.aligned.m16n8k16.row.col.f32.{short}.{short}.f32"
    LOAD = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
    LOAD_TRANSPOSED = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"

    def q_row(q_order, position):
        return T.Cast("int64", q_order[position]) if has_q_order else T.Cast("int64", position)

    def bits(value):
        return T.Cast("uint32", T.reinterpret("uint16", value))

    @inline
    def load_queries(q, q_order, of, queries, warp, lane, h):
        """queries [high, steps, 4]: the fragments of the warp's rows; zeros past the last row and channel."""
        for m in T.unroll(high):
            for lower in T.unroll(2):
                i: T.let = warp * warp_queries + m * 16 + lower * 8 + lane // 4
                for step in T.unroll(steps):
                    for right in T.unroll(2):
                        queries[m, step, right * 2 + lower] = T.uint32(0)
                if i < of[1]:
                    row: T.let = q_row(q_order, of[0] + i)
                    for step in T.unroll(steps):
                        for right in T.unroll(2):
                            c: T.let = step * 16 + right * 8 + lane % 4 * 2
                            if c < depth:
                                queries[m, step, right * 2 + lower] = bits(q[row, h, c])
                            if c + 1 < depth:
                                queries[m, step, right * 2 + lower] = queries[m, step, right * 2 + lower] | (
                                    bits(q[row, h, c + 1]) << T.uint32(16)
                                )

    @inline
    def find_logits(keys, queries, logits, stage, lane):
        operand = T.alloc_local((4,), "uint32")
        for m, j, i in T.grid(high, key_groups, 4):
            logits[m, j, i] = T.float32(0)
        for step in T.unroll(steps):
            for j in T.unroll(key_groups // 2):
                T.ptx[LOAD](
                    *(operand[0], operand[1], operand[2], operand[3]),
                    keys.ptr_to([copies.at(stage, j * 16 + lane // 16 * 8 + lane % 8, step * 16 + lane // 8 % 2 * 8)]),
                )
                for m in T.unroll(high):
                    for side in T.unroll(2):
                        T.ptx[MMA](
                            *(logits[m, j * 2 + side, 0], logits[m, j * 2 + side, 1]),
                            *(logits[m, j * 2 + side, 2], logits[m, j * 2 + side, 3]),
                            *(queries[m, step, 0], queries[m, step, 1], queries[m, step, 2], queries[m, step, 3]),
                            *(operand[side * 2], operand[side * 2 + 1]),
                            *(logits[m, j * 2 + side, 0], logits[m, j * 2 + side, 1]),
                            *(logits[m, j * 2 + side, 2], logits[m, j * 2 + side, 3]),
                        )

    @inline
    def hide_keys(logits, left, lane):
        """The logits past the `left` keys of a tile: minus infinity."""
        for m in T.unroll(high):
            for j in T.unroll(key_groups):
                for i in T.unroll(4):
                    if j * 8 + lane % 4 * 2 + i % 2 >= left:
                        logits[m, j, i] = T.float32("-inf")

    @inline
    def find_weights(logits, level, total, sums):
        """Logits become weights; the level of a row rises to the largest one."""
        most = T.alloc_local((1,), "float32")
        decay = T.alloc_local((1,), "float32")
        for m in T.unroll(high):
            for lower in T.unroll(2):
                most[0] = level[m, lower]
                for j in T.unroll(key_groups):
                    most[0] = larger(most[0], larger(logits[m, j, lower * 2], logits[m, j, lower * 2 + 1]))
                over_lanes(most, 0, larger, 4)
                if most[0] > level[m, lower]:
                    decay[0] = exp2((level[m, lower] - most[0]) * T.float32(factor))
                    level[m, lower] = most[0]
                    total[m, lower] = total[m, lower] * decay[0]
                    for d in T.unroll(channel_groups):
                        sums[m, d, lower * 2] = sums[m, d, lower * 2] * decay[0]
                        sums[m, d, lower * 2 + 1] = sums[m, d, lower * 2 + 1] * decay[0]
                for j in T.unroll(key_groups):
                    for side in T.unroll(2):
                        # The difference first: of equal logits it is 0 however large they are.
                        logits[m, j, lower * 2 + side] = exp2(
                            (logits[m, j, lower * 2 + side] - level[m, lower]) * T.float32(factor)
                        )
                        total[m, lower] = total[m, lower] + logits[m, j, lower * 2 + side]

    @inline
    def add_values(values, logits, sums, stage, lane):
        operand = T.alloc_local((4,), "uint32")
        weights = T.alloc_local((high, 4), "uint32")
        for step in T.unroll(key_groups // 2):
            for m in T.unroll(high):
                for i in T.unroll(4):
                    weights[m, i] = pack(
                        logits[m, step * 2 + i // 2, i % 2 * 2], logits[m, step * 2 + i // 2, i % 2 * 2 + 1], dtype
                    )
            for d in T.unroll(channel_groups // 2):
                T.ptx[LOAD_TRANSPOSED](
                    *(operand[0], operand[1], operand[2], operand[3]),
                    values.ptr_to([copies.at(stage, step * 16 + lane % 16, d * 16 + lane // 16 * 8)]),
                )
                for m in T.unroll(high):
                    for side in T.unroll(2):
                        T.ptx[MMA](
                            *(sums[m, d * 2 + side, 0], sums[m, d * 2 + side, 1]),
                            *(sums[m, d * 2 + side, 2], sums[m, d * 2 + side, 3]),
                            *(weights[m, 0], weights[m, 1], weights[m, 2], weights[m, 3]),
                            *(operand[side * 2], operand[side * 2 + 1]),
                            *(sums[m, d * 2 + side, 0], sums[m, d * 2 + side, 1]),
                            *(sums[m, d * 2 + side, 2], sums[m, d * 2 + side, 3]),
                        )

    @inline
    def store_row(q_order, out, kept_sums, kept_level, kept_total, sums, level, total, m, lower, i, item, h, of, lane):
        if of[5] > 1:
            state: T.let = T.Cast("int64", item) * spec.heads + h
            if lane % 4 == 0:
                kept_level[state, i] = level[m, lower]
                kept_total[state, i] = total[m, lower]
            for d in T.unroll(channel_groups):
                for side in T.unroll(2):
                    if d * 8 + lane % 4 * 2 + side < depth:
                        kept_sums[state, i, d * 8 + lane % 4 * 2 + side] = sums[m, d, lower * 2 + side]
        else:
            row: T.let = q_row(q_order, of[0] + i)
            share = T.alloc_local((1,), "float32")
            share[0] = T.float32(0)
            if of[3] > 0:
                share[0] = T.float32(1) / total[m, lower]  # without a logit above minus infinity 1 / 0, and 0 / 0 is NaN
            for d in T.unroll(channel_groups):
                for side in T.unroll(2):
                    if d * 8 + lane % 4 * 2 + side < depth:
                        out[row, h, d * 8 + lane % 4 * 2 + side] = T.Cast(dtype, sums[m, d, lower * 2 + side] * share[0])

    @inline
    def walk(q, k, v, q_order, k_order, out, kept_sums, kept_level, kept_total, item, h, thread, of):
        keys = T.alloc_shared((2 * tile.keys * tile.pitch,), dtype)
        values = T.alloc_shared((2 * tile.keys * tile.pitch,), dtype)
        rows = T.alloc_local((tile.turns,), "int32")
        queries = T.alloc_local((high, steps, 4), "uint32")
        logits = T.alloc_local((high, key_groups, 4), "float32")
        sums = T.alloc_local((high, channel_groups, 4), "float32")
        level = T.alloc_local((high, 2), "float32")
        total = T.alloc_local((high * 2,), "float32")
        totals = T.decl_buffer((high, 2), "float32", data=total.data, scope="local")
        is_aligned = T.alloc_local((1,), "bool")
        warp: T.let = thread // WARP
        lane: T.let = thread % WARP
        tiles: T.let = (of[3] + (tile.keys - 1)) // tile.keys
        is_aligned[0] = aligned(k, v)
        copies.find_rows(rows, k_order, of, 0, thread)
        if tiles > 0:
            copies.copy(k, keys, 0, rows, k_order, of, h, 0, thread, is_aligned[0])
            copies.copy(v, values, 0, rows, k_order, of, h, 0, thread, is_aligned[0])
        commit()
        copies.find_rows(rows, k_order, of, 1, thread)
        load_queries(q, q_order, of, queries, warp, lane, h)
        for m in T.unroll(high):
            for lower in T.unroll(2):
                level[m, lower] = T.float32(LEAST)
                totals[m, lower] = T.float32(0)
            for d in T.unroll(channel_groups):
                for i in T.unroll(4):
                    sums[m, d, i] = T.float32(0)
        for t in range(tiles):
            wait()
            if t + 1 < tiles:
                copies.copy(k, keys, (t + 1) % 2, rows, k_order, of, h, t + 1, thread, is_aligned[0])
                copies.copy(v, values, (t + 1) % 2, rows, k_order, of, h, t + 1, thread, is_aligned[0])
            commit()
            copies.find_rows(rows, k_order, of, t + 2, thread)
            if warp * warp_queries < of[1]:
                find_logits(keys, queries, logits, t % 2, lane)
                if (t + 1) * tile.keys > of[3]:
                    hide_keys(logits, of[3] - t * tile.keys, lane)
                find_weights(logits, level, totals, sums)
                add_values(values, logits, sums, t % 2, lane)
        for m in T.unroll(high):
            for lower in T.unroll(2):
                over_lanes(total, m * 2 + lower, add, 4)
                i: T.let = warp * warp_queries + m * 16 + lower * 8 + lane // 4
                if i < of[1]:
                    store_row(
                        *(q_order, out, kept_sums, kept_level, kept_total, sums, level, totals),
                        *(m, lower, i, item, h, of, lane),
                    )

    return walk


def _with_products(spec: Attention, tile: Tile, factor: float) -> Callable:
    """The walk of a block along the keys, for float32: eight threads side by side share 4 queries.

    A thread has every eighth key of a tile, and of channels 4 together, then 4 of the next 32.
    """
    depth, dtype, has_q_order = spec.depth, spec.dtype, spec.has_q_order
    copies = _Copies(tile, depth, spec.has_k_order)
    SIDE, HIGH, QUAD = 8, 4, 4  # threads that share queries, queries of each, numbers that are loaded together
    step_rows = tile.threads // SIDE  # from a query of a thread to its next
    assert tile.queries == HIGH * step_rows and tile.keys % SIDE == 0 and tile.channels % (SIDE * QUAD) == 0
    own_keys, own_groups = tile.keys // SIDE, tile.channels // (SIDE * QUAD)
    weight_pitch = tile.keys + QUAD
    sizes = tile.queries * tile.pitch, tile.keys * tile.pitch, tile.keys * tile.pitch, tile.queries * weight_pitch
    assert 4 * sum(sizes) <= MOST_STATIC

    def q_row(q_order, position):
        return T.Cast("int64", q_order[position]) if has_q_order else T.Cast("int64", position)

    @inline
    def load_queries(q, q_order, of, queries, thread, h):
        """queries [tile.queries, pitch] = those of the tile; zeros past the last row and channel."""
        for turn in range(tile.queries * tile.channels // tile.threads):
            index: T.let = turn * tile.threads + thread
            i: T.let = index // tile.channels
            c: T.let = index % tile.channels
            queries[i * tile.pitch + c] = T.float32(0)
            if T.And(i < of[1], c < depth):
                queries[i * tile.pitch + c] = q[q_row(q_order, of[0] + i), h, c]

    @inline
    def find_logits(queries, keys, logits, group, side):
        mine = T.alloc_local((HIGH * QUAD,), "float32")
        other = T.alloc_local((QUAD,), "float32")
        for i, j in T.grid(HIGH, own_keys):
            logits[i, j] = T.float32(0)
        for quad in range(tile.channels // QUAD):
            for i in T.unroll(HIGH):
                mine[T.Ramp(i * QUAD, 1, QUAD)] = queries[T.Ramp((i * step_rows + group) * tile.pitch + quad * QUAD, 1, QUAD)]
            for j in T.unroll(own_keys):
                other[T.Ramp(0, 1, QUAD)] = keys[T.Ramp((j * SIDE + side) * tile.pitch + quad * QUAD, 1, QUAD)]
                for i in T.unroll(HIGH):
                    for c in T.unroll(QUAD):
                        logits[i, j] = logits[i, j] + mine[i * QUAD + c] * other[c]

    @inline
    def find_weights(logits, weights, level, total, sums, left, group, side):
        """Logits of `left` keys become weights, in shared memory; the level of a row rises to the largest one."""
        most = T.alloc_local((1,), "float32")
        decay = T.alloc_local((1,), "float32")
        for i in T.unroll(HIGH):
            most[0] = level[i]
            for j in T.unroll(own_keys):
                if j * SIDE + side >= left:
                    logits[i, j] = T.float32("-inf")
                most[0] = larger(most[0], logits[i, j])
            over_lanes(most, 0, larger, SIDE)
            if most[0] > level[i]:
                decay[0] = exp2((level[i] - most[0]) * T.float32(factor))
                level[i] = most[0]
                total[i] = total[i] * decay[0]
                for d in T.unroll(own_groups * QUAD):
                    sums[i, d] = sums[i, d] * decay[0]
            for j in T.unroll(own_keys):
                logits[i, j] = exp2((logits[i, j] - level[i]) * T.float32(factor))
                total[i] = total[i] + logits[i, j]
                weights[(i * step_rows + group) * weight_pitch + j * SIDE + side] = logits[i, j]

    @inline
    def add_values(weights, values, sums, group, side):
        mine = T.alloc_local((HIGH * QUAD,), "float32")
        other = T.alloc_local((QUAD,), "float32")
        for quad in range(tile.keys // QUAD):
            for i in T.unroll(HIGH):
                mine[T.Ramp(i * QUAD, 1, QUAD)] = weights[T.Ramp((i * step_rows + group) * weight_pitch + quad * QUAD, 1, QUAD)]
            for key in T.unroll(QUAD):
                for d in T.unroll(own_groups):
                    other[T.Ramp(0, 1, QUAD)] = values[
                        T.Ramp((quad * QUAD + key) * tile.pitch + (d * SIDE + side) * QUAD, 1, QUAD)
                    ]
                    for i in T.unroll(HIGH):
                        for c in T.unroll(QUAD):
                            sums[i, d * QUAD + c] = sums[i, d * QUAD + c] + mine[i * QUAD + key] * other[c]

    @inline
    def store_row(q_order, out, kept_sums, kept_level, kept_total, sums, level, total, i, row_of_tile, item, h, of, side):
        if of[5] > 1:
            state: T.let = T.Cast("int64", item) * spec.heads + h
            if side == 0:
                kept_level[state, row_of_tile] = level[i]
                kept_total[state, row_of_tile] = total[i]
            for d in T.unroll(own_groups):
                for c in T.unroll(QUAD):
                    if (d * SIDE + side) * QUAD + c < depth:
                        kept_sums[state, row_of_tile, (d * SIDE + side) * QUAD + c] = sums[i, d * QUAD + c]
        else:
            row: T.let = q_row(q_order, of[0] + row_of_tile)
            share = T.alloc_local((1,), "float32")
            share[0] = T.float32(0)
            if of[3] > 0:
                share[0] = T.float32(1) / total[i]  # without a logit above minus infinity 1 / 0, and 0 / 0 is NaN
            for d in T.unroll(own_groups):
                for c in T.unroll(QUAD):
                    if (d * SIDE + side) * QUAD + c < depth:
                        out[row, h, (d * SIDE + side) * QUAD + c] = T.Cast(dtype, sums[i, d * QUAD + c] * share[0])

    @inline
    def walk(q, k, v, q_order, k_order, out, kept_sums, kept_level, kept_total, item, h, thread, of):
        queries = T.alloc_shared((sizes[0],), dtype)
        keys = T.alloc_shared((sizes[1],), dtype)
        values = T.alloc_shared((sizes[2],), dtype)
        weights = T.alloc_shared((sizes[3],), dtype)
        rows = T.alloc_local((tile.turns,), "int32")
        logits = T.alloc_local((HIGH, own_keys), "float32")
        sums = T.alloc_local((HIGH, own_groups * QUAD), "float32")
        level = T.alloc_local((HIGH,), "float32")
        total = T.alloc_local((HIGH,), "float32")
        is_aligned = T.alloc_local((1,), "bool")
        group: T.let = thread // SIDE
        side: T.let = thread % SIDE
        tiles: T.let = (of[3] + (tile.keys - 1)) // tile.keys
        is_aligned[0] = aligned(k, v)
        copies.find_rows(rows, k_order, of, 0, thread)
        if tiles > 0:
            copies.copy(k, keys, 0, rows, k_order, of, h, 0, thread, is_aligned[0])
        commit()
        load_queries(q, q_order, of, queries, thread, h)
        for i in T.unroll(HIGH):
            level[i] = T.float32(LEAST)
            total[i] = T.float32(0)
            for d in T.unroll(own_groups * QUAD):
                sums[i, d] = T.float32(0)
        for t in range(tiles):
            wait()  # for keys; all threads are done with the values before
            copies.copy(v, values, 0, rows, k_order, of, h, t, thread, is_aligned[0])
            commit()
            copies.find_rows(rows, k_order, of, t + 1, thread)
            find_logits(queries, keys, logits, group, side)
            find_weights(logits, weights, level, total, sums, of[3] - t * tile.keys, group, side)
            wait()  # for values, and weights; all threads are done with the keys
            if t + 1 < tiles:
                copies.copy(k, keys, 0, rows, k_order, of, h, t + 1, thread, is_aligned[0])
            commit()
            add_values(weights, values, sums, group, side)
        for i in T.unroll(HIGH):
            over_lanes(total, i, add, SIDE)
            if i * step_rows + group < of[1]:
                store_row(
                    *(q_order, out, kept_sums, kept_level, kept_total, sums, level, total),
                    *(i, i * step_rows + group, item, h, of, side),
                )

    return walk


def _of_any_depth(spec: Attention, tile: Tile, factor: float) -> Callable:
    """The walk of a block along the keys for deep heads of any type: eight threads side by side share a query.

    A thread has every eighth key and every eighth channel. Only weights are in shared memory.
    """
    depth, dtype, has_q_order, has_k_order = spec.depth, spec.dtype, spec.has_q_order, spec.has_k_order
    SIDE = 8
    assert tile.threads == SIDE * tile.queries and tile.keys % SIDE == 0
    own_keys, own_channels, pitch = tile.keys // SIDE, -(-depth // SIDE), tile.keys + 1

    def q_row(q_order, position):
        return T.Cast("int64", q_order[position]) if has_q_order else T.Cast("int64", position)

    def k_row(k_order, position):
        return T.Cast("int64", k_order[position]) if has_k_order else T.Cast("int64", position)

    @inline
    def find_logits(q, k, q_order, k_order, of, logits, first_key, i, side, h):
        for j in T.unroll(own_keys):
            logits[j] = T.float32("-inf")
            if T.And(i < of[1], first_key + j * SIDE + side < of[3]):
                row: T.let = q_row(q_order, of[0] + i)
                key: T.let = k_row(k_order, of[2] + first_key + j * SIDE + side)
                logits[j] = T.float32(0)
                for c in range(depth):
                    logits[j] = logits[j] + T.Cast("float32", q[row, h, c]) * T.Cast("float32", k[key, h, c])

    @inline
    def find_weights(logits, weights, level, total, sums, i, side):
        most = T.alloc_local((1,), "float32")
        decay = T.alloc_local((1,), "float32")
        most[0] = level[0]
        for j in T.unroll(own_keys):
            most[0] = larger(most[0], logits[j])
        over_lanes(most, 0, larger, SIDE)
        if most[0] > level[0]:
            decay[0] = exp2((level[0] - most[0]) * T.float32(factor))
            level[0] = most[0]
            total[0] = total[0] * decay[0]
            for d in range(own_channels):
                sums[d] = sums[d] * decay[0]
        for j in T.unroll(own_keys):
            logits[j] = exp2((logits[j] - level[0]) * T.float32(factor))
            total[0] = total[0] + logits[j]
            weights[i * pitch + j * SIDE + side] = logits[j]

    @inline
    def add_values(v, k_order, of, weights, sums, first_key, i, side, h):
        for key in range(T.min(of[3] - first_key, tile.keys)):
            row: T.let = k_row(k_order, of[2] + first_key + key)
            for d in range(own_channels):
                if d * SIDE + side < depth:
                    sums[d] = sums[d] + weights[i * pitch + key] * T.Cast("float32", v[row, h, d * SIDE + side])

    @inline
    def store_row(q_order, out, kept_sums, kept_level, kept_total, sums, level, total, i, item, h, of, side):
        if of[5] > 1:
            state: T.let = T.Cast("int64", item) * spec.heads + h
            if side == 0:
                kept_level[state, i] = level[0]
                kept_total[state, i] = total[0]
            for d in range(own_channels):
                if d * SIDE + side < depth:
                    kept_sums[state, i, d * SIDE + side] = sums[d]
        else:
            share = T.alloc_local((1,), "float32")
            share[0] = T.float32(0)
            if of[3] > 0:
                share[0] = T.float32(1) / total[0]  # without a logit above minus infinity 1 / 0, and 0 / 0 is NaN
            for d in range(own_channels):
                if d * SIDE + side < depth:
                    out[q_row(q_order, of[0] + i), h, d * SIDE + side] = T.Cast(dtype, sums[d] * share[0])

    @inline
    def walk(q, k, v, q_order, k_order, out, kept_sums, kept_level, kept_total, item, h, thread, of):
        weights = T.alloc_shared((tile.queries * pitch,), "float32")
        logits = T.alloc_local((own_keys,), "float32")
        sums = T.alloc_local((own_channels,), "float32")
        level = T.alloc_local((1,), "float32")
        total = T.alloc_local((1,), "float32")
        i: T.let = thread // SIDE
        side: T.let = thread % SIDE
        level[0] = T.float32(LEAST)
        total[0] = T.float32(0)
        for d in range(own_channels):
            sums[d] = T.float32(0)
        for t in range((of[3] + (tile.keys - 1)) // tile.keys):
            find_logits(q, k, q_order, k_order, of, logits, t * tile.keys, i, side, h)
            T.tvm_storage_sync("shared")  # all are done with the weights before
            find_weights(logits, weights, level, total, sums, i, side)
            T.tvm_storage_sync("shared")
            add_values(v, k_order, of, weights, sums, t * tile.keys, i, side, h)
        over_lanes(total, 0, add, SIDE)
        if i < of[1]:
            store_row(q_order, out, kept_sums, kept_level, kept_total, sums, level, total, i, item, h, of, side)

    return walk
