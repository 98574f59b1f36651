"""Kernel maps as pairs by block, see `layout.PairsByBlock`."""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..spec.coordinate_index import GRID, PLAN_EXTENT, PLAN_METHOD, PLAN_ROWS, PLAN_SIZE
from ..spec.kernel_map import InverseMap, ProbeMap, SubmanifoldMap
from .coordinate_index import BUCKET, BUCKET_BITS, KEY_BITS, cell_of, find, find_bucket, key_of
from .guards import check_map
from .isa import Isa

CHUNK = 512  # rows that one task of a table kernel walks, tap by tap


@inline
def pack_block(table, first, count, pair_in, pair_out, segment, block, taps):
    """The pairs of one block from a neighbour table [taps, columns]: columns first .. first + count."""
    cursor = T.alloc_buffer((1,), "int64")
    cursor[0] = T.int64(0)
    for tap in range(taps):
        segment[block, tap] = T.Cast("int32", cursor[0])
        for i in range(count):
            # write always, advance on a hit: no branch to mispredict
            row: T.let = table[tap, first + i]
            pair_in[block, cursor[0]] = row
            pair_out[block, cursor[0]] = T.Cast("int32", i)
            cursor[0] += T.Cast("int64", row >= 0)
    segment[block, taps] = T.Cast("int32", cursor[0])


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
    def pack_grid(coords, plan, slots, first, count, pair_in, pair_out, segment, block, size):
        cells = T.alloc_buffer((size,), "int64")
        cursor = T.alloc_buffer((1,), "int64")
        for i in range(count):
            cells[i] = cell_of(plan, coords[first + i, 0], coords[first + i, 1], coords[first + i, 2], coords[first + i, 3])
        cursor[0] = T.int64(0)
        for tap in range(T.int64(taps)):
            delta: T.let = ((tap // (ky * kz) * dx - px) * plan[PLAN_EXTENT + 2] + (tap // kz % ky * dy - py)) * plan[
                PLAN_EXTENT + 3
            ] + (tap % kz * dz - pz)
            segment[block, tap] = T.Cast("int32", cursor[0])
            for i in range(count):
                row: T.let = slots[cells[i] + delta]
                pair_in[block, cursor[0]] = row
                pair_out[block, cursor[0]] = T.Cast("int32", i)
                cursor[0] += T.Cast("int64", row >= 0)
        segment[block, taps] = T.Cast("int32", cursor[0])

    @inline
    def probe_hash(coords, slots, keys, buckets, first, count, table):
        bucket = T.alloc_buffer((1,), "int64")
        bucket_key = T.alloc_buffer((1,), "int64")
        for i in range(count):
            key: T.let = key_of(coords[first + i, 0], coords[first + i, 1], coords[first + i, 2], coords[first + i, 3])
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
                    find_bucket(keys, buckets, bucket_key[0], bucket)
                other: T.let = slots[bucket[0] * BUCKET + (place & (BUCKET - 1))]
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
        rows, num_slots, num_keys, blocks, size = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = match_buffer(plan_, (PLAN_SIZE,), "int64")
        slots = match_buffer(slots_, (num_slots,), "int32")
        keys = match_buffer(keys_, (num_keys,), "int64")
        pair_in = match_buffer(pair_in_, (blocks, size), "int32")
        pair_out = match_buffer(pair_out_, (blocks, size), "int32")
        segment = match_buffer(segment_, (blocks, taps + 1), "int32")
        map_rows[0] = rows
        map_rows[1] = rows
        if plan[PLAN_METHOD] == GRID:
            for block in T.parallel(blocks):
                T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)
                count: T.let = T.min(size // taps, rows - block * (size // taps))
                pack_grid(coords, plan, slots, block * (size // taps), count, pair_in, pair_out, segment, block, size // taps)
        else:
            table = T.alloc_buffer((taps, rows), "int32")
            for chunk in T.parallel((rows + CHUNK - 1) // CHUNK):
                for tap in range(T.int64(center)):
                    for i in range(T.min(T.int64(CHUNK), rows - chunk * CHUNK)):
                        table[center + 1 + tap, chunk * CHUNK + i] = T.int32(-1)
            for chunk in T.parallel((rows + CHUNK - 1) // CHUNK):
                count: T.let = T.min(T.int64(CHUNK), rows - chunk * CHUNK)
                probe_hash(coords, slots, keys, num_keys, chunk * CHUNK, count, table)
            for block in T.parallel(blocks):
                count: T.let = T.min(size // taps, rows - block * (size // taps))
                pack_block(table, block * (size // taps), count, pair_in, pair_out, segment, block, T.int64(taps))

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
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "probe_map"})
        rows, num_slots, num_keys, blocks, size = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = match_buffer(plan_, (PLAN_SIZE,), "int64")
        slots = match_buffer(slots_, (num_slots,), "int32")
        keys = match_buffer(keys_, (num_keys,), "int64")
        pair_in = match_buffer(pair_in_, (blocks, size), "int32")
        pair_out = match_buffer(pair_out_, (blocks, size), "int32")
        segment = match_buffer(segment_, (blocks, taps + 1), "int32")
        map_rows[0] = plan[PLAN_ROWS]
        map_rows[1] = rows
        for block in T.parallel(blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)
            cursor = T.alloc_buffer((1,), "int64")
            found = T.alloc_buffer((1,), "int32")
            first: T.let = block * (size // taps)
            cursor[0] = T.int64(0)
            for tap in range(T.int64(taps)):
                segment[block, tap] = T.Cast("int32", cursor[0])
                for i in range(T.min(size // taps, rows - first)):
                    x: T.let = source(coords[first + i, 1], tap, 0)[0]
                    y: T.let = source(coords[first + i, 2], tap, 1)[0]
                    z: T.let = source(coords[first + i, 3], tap, 2)[0]
                    found[0] = T.int32(-1)
                    if (
                        source(coords[first + i, 1], tap, 0)[1]
                        & source(coords[first + i, 2], tap, 1)[1]
                        & source(coords[first + i, 3], tap, 2)[1]
                    ):
                        find(plan, slots, keys, num_keys, coords[first + i, 0], x, y, z, found)
                    pair_in[block, cursor[0]] = found[0]
                    pair_out[block, cursor[0]] = T.Cast("int32", i)
                    cursor[0] += T.Cast("int64", found[0] >= 0)
            segment[block, taps] = T.Cast("int32", cursor[0])

    return kernel


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
        rows, columns, blocks, size, inverse_blocks, inverse_size = (
            T.int64(),
            T.int64(),
            T.int64(),
            T.int64(),
            T.int64(),
            T.int64(),
        )
        pair_in = match_buffer(pair_in_, (blocks, size), "int32")
        pair_out = match_buffer(pair_out_, (blocks, size), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        match_buffer(coords_, (rows, 4), "int32")
        inverse_in = match_buffer(inverse_in_, (inverse_blocks, inverse_size), "int32")
        inverse_out = match_buffer(inverse_out_, (inverse_blocks, inverse_size), "int32")
        inverse_segment = match_buffer(inverse_segment_, (inverse_blocks, columns), "int32")
        taps: T.let = columns - 1
        check_map(map_rows, rows, map_rows[1], taps, taps)
        inverse_rows[0] = map_rows[1]
        inverse_rows[1] = map_rows[0]
        table = T.alloc_buffer((columns - 1, rows), "int32")
        for tap in T.parallel(taps):  # an input row meets at most one output row at a tap: no write is shared
            for row in range(rows):
                table[tap, row] = T.int32(-1)
            for block in range(blocks):
                for i in range(T.Cast("int64", segment[block, tap + 1] - segment[block, tap])):
                    pair: T.let = T.Cast("int64", segment[block, tap]) + i
                    table[tap, T.Cast("int64", pair_in[block, pair])] = T.Cast(
                        "int32", block * (size // taps) + T.Cast("int64", pair_out[block, pair])
                    )
        for block in T.parallel(inverse_blocks):
            first: T.let = block * (inverse_size // taps)
            count: T.let = T.min(inverse_size // taps, rows - first)
            pack_block(table, first, count, inverse_in, inverse_out, inverse_segment, block, taps)

    return kernel
