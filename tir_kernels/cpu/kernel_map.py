"""Kernel maps as pairs by block, see `layout.PairsByBlock`."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer, named
from ..script import inline
from ..spec.coordinate_index import GRID
from ..spec.kernel_map import InverseMap, ProbeMap, SubmanifoldMap
from .coordinate_index import BUCKET_BITS, KEY_BITS, coordinate, key_of, match_index
from .guards import check_map
from .isa import Isa

CHUNK = 512  # rows that one task of a table kernel walks, tap by tap


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
def submanifold_map(spec: SubmanifoldMap, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SubmanifoldMap`.

    In a hash, half of the taps are probed: where row i finds row j at tap k, row j has row i at the mirrored tap. In a grid
    a probe is a single load, cheaper than storing the mirrored entry, so there every tap is probed and packed at once.
    """
    geometry = spec.geometry
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
def probe_map(spec: ProbeMap, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `ProbeMap`."""
    geometry = spec.geometry
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
        slots_out_: T.handle,
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

    return kernel if spec.chosen else script.drop_parameters(kernel, "slots_out_")


@cache
def inverse_map(spec: InverseMap, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `InverseMap`."""

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
