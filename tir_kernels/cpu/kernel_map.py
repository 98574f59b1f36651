"""Kernel maps: which input row meets which output row at each tap of a sparse convolution.

The law, for every tap k of every map:  coordinate_in = stride * coordinate_out + dilation * k - padding.

As a *neighbour table*, int32 [taps, M], a map holds the input row of every (tap, output row), or -1; the oracle makes that.
CPU kernels read *pairs*, which list only the hits, grouped by (block of output rows, tap): a block belongs to one thread
and no other thread adds into its rows. Taps are numbered with the last axis fastest. The arrays of a map are

    pair_in   int32 [blocks, taps * block_rows]  input row of every hit of a block, tap by tap from the front
    pair_out  int32 [blocks, taps * block_rows]  output row within the block; entries past the last hit are undefined
    segment   int32 [blocks, taps + 1]           where each tap starts
    rows      int64 [2]                          input and output rows, which every use checks
"""

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer, named
from ..guards import RAISE_MAP, RAISE_TAPS
from ..script import inline
from .coordinate_index import BUCKET_BITS, GRID, KEY_BITS, coordinate, key_of, match_index

CHUNK = 512  # rows that one task of a table kernel walks, tap by tap


@dataclass(frozen=True)
class Geometry:
    """Kernel size, stride, padding and dilation of a convolution along x, y, z."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 0, 0)
    dilation: tuple[int, int, int] = (1, 1, 1)
    transposed: bool = False

    @classmethod
    def submanifold(cls, kernel, dilation=(1, 1, 1)) -> "Geometry":
        """Output sites are the input sites: stride 1 and the padding that centres an odd kernel."""
        padding = tuple(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
        return cls(tuple(kernel), padding=padding, dilation=tuple(dilation))

    @property
    def taps(self) -> int:
        return int(np.prod(self.kernel))

    @property
    def reach(self) -> tuple[int, int, int]:
        """How far a tap lies from the centre of a submanifold kernel, along x, y, z."""
        return tuple(k // 2 * d for k, d in zip(self.kernel, self.dilation, strict=True))

    def offsets(self) -> np.ndarray:
        """int [taps, 3]: dilation * k - padding of each tap."""
        taps = np.array(list(itertools.product(*(range(k) for k in self.kernel))))
        return taps * np.array(self.dilation) - np.array(self.padding)


def block_rows(rows):
    """Output rows of one block of pairs, for `rows` in all: an int or a TIR expression.

    About 64 blocks, so that threads share the work evenly, of 64 to 512 rows: fewer would leave many half-filled register
    tiles, more would not stay in the L2 cache. No bit of a result depends on it.
    """
    if isinstance(rows, int):
        return max(64, min(512, -(-rows // 64)))
    return tvm.tirx.max(tvm.tirx.min((rows + 63) // 64, tvm.tirx.IntImm("int64", 512)), tvm.tirx.IntImm("int64", 64))


def naive_table(coords_in, coords_out, geometry: Geometry) -> np.ndarray:
    """Oracle of the law. coords_in [N, 4], coords_out [M, 4] -> int32 [taps, M]."""
    rows = {tuple(c): row for row, c in enumerate(np.asarray(coords_in).tolist())}
    table = np.full((geometry.taps, len(coords_out)), -1, "int32")
    stride = np.array(geometry.stride)
    for tap, offset in enumerate(geometry.offsets()):
        for o, site in enumerate(np.asarray(coords_out)):
            if geometry.transposed:  # the same law with the roles exchanged: out = stride * in + offset
                source, rest = np.divmod(site[1:] - offset, stride)
                if rest.any():
                    continue
            else:
                source = site[1:] * stride + offset
            table[tap, o] = rows.get((int(site[0]), *map(int, source)), -1)
    return table


def naive_inverse(table: np.ndarray, rows: int) -> np.ndarray:
    """Oracle. table [taps, M] of `rows` inputs -> int32 [taps, rows]: the same triples with input and output exchanged."""
    inverse = np.full((len(table), rows), -1, "int32")
    for tap, sources in enumerate(table):
        inverse[tap, sources[sources >= 0]] = np.flatnonzero(sources >= 0)
    return inverse


@inline
def check_map(map_rows, rows_in, rows_out, map_taps, taps):
    """Raise unless a map leads from `rows_in` to `rows_out` rows by `taps` taps."""
    if T.Or(map_rows[0] != rows_in, map_rows[1] != rows_out):
        T.evaluate(T.call_packed(RAISE_MAP, map_rows[0], map_rows[1], rows_in, rows_out))
    if map_taps != taps:
        T.evaluate(T.call_packed(RAISE_TAPS, map_taps, taps))


@dataclass(frozen=True, eq=False)
class Pairs:
    """The buffers of a map, as the head of this file says; `columns` is the second dimension of `segment`."""

    pair_in: object
    pair_out: object
    segment: object
    columns: object

    @property
    def blocks(self):
        return self.pair_in.shape[0]

    @property
    def block_rows(self):
        """Output rows of a block."""
        return self.pair_in.shape[1] // (self.columns - 1)

    @inline
    def start(self, block, tap, cursor):
        """The pairs of a tap start at cursor[0]; those of the tap after the last end there."""
        self.segment[block, tap] = T.Cast("int32", cursor[0])

    @inline
    def add(self, block, cursor, row, i):
        """Note that output row `i` of a block meets input row `row`, if that is not negative."""
        # write always, advance on a hit: no branch to mispredict
        self.pair_in[block, cursor[0]] = row
        self.pair_out[block, cursor[0]] = T.Cast("int32", i)
        cursor[0] += T.Cast("int64", row >= 0)

    @inline
    def pack_block(self, table, block, first, count, taps):
        """The pairs of one block from a neighbour table [taps, columns]: columns first .. first + count."""
        cursor = T.alloc_buffer((1,), "int64")
        cursor[0] = T.int64(0)
        for tap in range(taps):
            self.start(block, tap, cursor)
            for i in range(count):
                row: T.let = table[tap, first + i]
                self.add(block, cursor, row, i)
        self.start(block, taps, cursor)


def match_pairs(pair_in, pair_out, segment, columns, prefix: str = "") -> Pairs:
    """The `Pairs` in three of a kernel's parameters, for `T.meta_var`; `prefix`: of their names."""
    blocks, size = tvm.tirx.Var(f"{prefix}blocks", "int64"), tvm.tirx.Var(f"{prefix}size", "int64")
    return Pairs(
        named(f"{prefix}pair_in", match_buffer(pair_in, (blocks, size), "int32")),
        named(f"{prefix}pair_out", match_buffer(pair_out, (blocks, size), "int32")),
        named(f"{prefix}segment", match_buffer(segment, (blocks, columns), "int32")),
        columns,
    )


@cache
def submanifold_map(geometry: Geometry) -> tvm.tirx.PrimFunc:
    """PrimFunc (coords int32 [N, 4], plan, slots, keys, pair_in, pair_out, segment, rows) of a submanifold convolution.

    The index must have been planned with `pad=geometry.reach`, so that the grid needs no bounds checks.

    In a hash, half of the taps are probed: where row i finds row j at tap k, row j has row i at the mirrored tap. In a grid
    a probe is a single load, cheaper than storing the mirrored entry, so there every tap is probed and packed at once.
    """
    taps, center = geometry.taps, geometry.taps // 2
    _, ky, kz = geometry.kernel
    dx, dy, dz = geometry.dilation
    px, py, pz = geometry.padding

    @inline
    def pack_grid(coords, index, pairs, block, first, count):
        cells = T.alloc_buffer((pairs.block_rows,), "int64")
        cursor = T.alloc_buffer((1,), "int64")
        for i in range(count):
            cells[i] = index.plan.cell_of(coordinate(coords, first + i))
        cursor[0] = T.int64(0)
        for tap in range(T.int64(taps)):
            delta: T.let = (
                (tap // (ky * kz) * dx - px) * index.plan.extent(2) + (tap // kz % ky * dy - py)
            ) * index.plan.extent(3) + (tap % kz * dz - pz)
            pairs.start(block, tap, cursor)
            for i in range(count):
                row: T.let = index.slots[cells[i] + delta]
                pairs.add(block, cursor, row, i)
        pairs.start(block, T.int64(taps), cursor)

    @inline
    def probe_hash(coords, index, first, count, table):
        bucket = T.alloc_buffer((1,), "int64")
        bucket_key = T.alloc_buffer((1,), "int64")
        for i in range(count):
            key: T.let = key_of(coordinate(coords, first + i))
            table[center, first + i] = T.Cast("int32", first + i)
            bucket_key[0] = T.int64(-1)
            for tap in range(T.int64(center)):
                place: T.let = (
                    key
                    + ((tap // (ky * kz) * dx - px) << (2 * KEY_BITS))
                    + ((tap // kz % ky * dy - py) << KEY_BITS)
                    + (tap % kz * dz - pz)
                )
                if place >> BUCKET_BITS != bucket_key[0]:  # the taps of a column mostly stay in one bucket
                    bucket_key[0] = place >> BUCKET_BITS
                    index.table.find_bucket(bucket_key[0], bucket)
                other: T.let = index.slots[index.table.place(bucket[0], place)]
                table[tap, first + i] = other
                # the mirrored entry; a miss writes what this row has at the centre once more: no branch to mispredict
                table[
                    T.if_then_else(other >= 0, taps - 1 - tap, T.int64(center)),
                    T.if_then_else(other >= 0, T.Cast("int64", other), first + i),
                ] = T.Cast("int32", first + i)

    @script.prim_func(s_tir=True)
    def kernel(
        coords_: T.handle,
        plan_: T.handle,
        slots_: T.handle,
        keys_: T.handle,
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "submanifold_map"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        index = T.meta_var(match_index(plan_, slots_, keys_))
        pairs = T.meta_var(match_pairs(pair_in_, pair_out_, segment_, taps + 1))
        map_rows[0] = rows
        map_rows[1] = rows
        if index.plan.method == GRID:
            for block in T.parallel(pairs.blocks):
                T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)
                first: T.let = block * pairs.block_rows
                pack_grid(coords, index, pairs, block, first, T.min(pairs.block_rows, rows - first))
        else:
            table = T.alloc_buffer((taps, rows), "int32")
            for chunk in T.parallel((rows + CHUNK - 1) // CHUNK):
                for tap in range(T.int64(center)):
                    for i in range(T.min(T.int64(CHUNK), rows - chunk * CHUNK)):
                        table[center + 1 + tap, chunk * CHUNK + i] = T.int32(-1)
            for chunk in T.parallel((rows + CHUNK - 1) // CHUNK):
                count: T.let = T.min(T.int64(CHUNK), rows - chunk * CHUNK)
                probe_hash(coords, index, chunk * CHUNK, count, table)
            for block in T.parallel(pairs.blocks):
                first: T.let = block * pairs.block_rows
                pairs.pack_block(table, block, first, T.min(pairs.block_rows, rows - first), T.int64(taps))

    return kernel


@cache
def probe_map(geometry: Geometry) -> tvm.tirx.PrimFunc:
    """PrimFunc (coords_out int32 [M, 4], plan, slots, keys, pair_in, pair_out, segment, rows): any map, by the law.

    The index is that of the input coordinates. For a transposed convolution the law holds with the roles exchanged,
    coordinate_out = stride * coordinate_in + dilation * k - padding, and a tap counts where the division is exact.
    """
    taps = geometry.taps
    kernel_size, stride, padding, dilation = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation

    def source(coordinate, tap, axis):
        """(input coordinate, whether there is one) along an axis, for output `coordinate`."""
        below = int(np.prod(kernel_size[axis + 1 :]))
        offset = tap // below % kernel_size[axis] * dilation[axis] - padding[axis]
        if not geometry.transposed:
            return T.Cast("int64", coordinate) * stride[axis] + offset, T.bool(True)
        scaled = T.Cast("int64", coordinate) - offset
        return T.floordiv(scaled, T.int64(stride[axis])), T.floormod(scaled, T.int64(stride[axis])) == 0

    @script.prim_func(s_tir=True)
    def kernel(
        coords_: T.handle,
        plan_: T.handle,
        slots_: T.handle,
        keys_: T.handle,
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "probe_map"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        index = T.meta_var(match_index(plan_, slots_, keys_))
        pairs = T.meta_var(match_pairs(pair_in_, pair_out_, segment_, taps + 1))
        map_rows[0] = index.plan.rows
        map_rows[1] = rows
        for block in T.parallel(pairs.blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)
            cursor = T.alloc_buffer((1,), "int64")
            found = T.alloc_buffer((1,), "int32")
            first: T.let = block * pairs.block_rows
            cursor[0] = T.int64(0)
            for tap in range(T.int64(taps)):
                pairs.start(block, tap, cursor)
                for i in range(T.min(pairs.block_rows, rows - first)):
                    x: T.let = source(coords[first + i, 1], tap, 0)[0]
                    y: T.let = source(coords[first + i, 2], tap, 1)[0]
                    z: T.let = source(coords[first + i, 3], tap, 2)[0]
                    found[0] = T.int32(-1)
                    if (
                        source(coords[first + i, 1], tap, 0)[1]
                        & source(coords[first + i, 2], tap, 1)[1]
                        & source(coords[first + i, 3], tap, 2)[1]
                    ):
                        index.find((coords[first + i, 0], x, y, z), found)
                    pairs.add(block, cursor, found[0], i)
            pairs.start(block, T.int64(taps), cursor)

    return kernel


@cache
def inverse_map() -> tvm.tirx.PrimFunc:
    """PrimFunc (pair_in, pair_out, segment, rows, coords int32 [N, 4], pair_in', pair_out', segment', rows').

    The map of the inverse convolution: the same triples (input, output, tap) with input and output exchanged. Of `coords`,
    the coordinates that the given map reads from, only the number of rows matters.
    """

    @script.prim_func(s_tir=True)
    def kernel(
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        coords_: T.handle,
        inverse_in_: T.handle,
        inverse_out_: T.handle,
        inverse_segment_: T.handle,
        inverse_rows: T.Buffer((2,), "int64"),
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "inverse_map"})
        rows, columns = T.int64(), T.int64()
        pairs = T.meta_var(match_pairs(pair_in_, pair_out_, segment_, columns))
        match_buffer(coords_, (rows, 4), "int32")
        inverse = T.meta_var(match_pairs(inverse_in_, inverse_out_, inverse_segment_, columns, "inverse_"))
        taps: T.let = columns - 1
        check_map(map_rows, rows, map_rows[1], taps, taps)
        inverse_rows[0] = map_rows[1]
        inverse_rows[1] = map_rows[0]
        table = T.alloc_buffer((columns - 1, rows), "int32")
        for tap in T.parallel(taps):  # an input row meets at most one output row at a tap: no write is shared
            for row in range(rows):
                table[tap, row] = T.int32(-1)
            for block in range(pairs.blocks):
                for i in range(T.Cast("int64", pairs.segment[block, tap + 1] - pairs.segment[block, tap])):
                    pair: T.let = T.Cast("int64", pairs.segment[block, tap]) + i
                    table[tap, T.Cast("int64", pairs.pair_in[block, pair])] = T.Cast(
                        "int32", block * pairs.block_rows + T.Cast("int64", pairs.pair_out[block, pair])
                    )
        for block in T.parallel(inverse.blocks):
            first: T.let = block * inverse.block_rows
            inverse.pack_block(table, block, first, T.min(inverse.block_rows, rows - first), taps)

    return kernel
