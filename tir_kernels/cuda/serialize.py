"""Voxels along a space-filling curve, and windows of that sequence."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..curves import code_range, cuts, first_key, hilbert_axes, interleave, key_column, wrapped
from ..integers import nearest_int32
from ..script import inline
from ..spec.coordinate_index import BATCH_LIMIT
from ..spec.serialize import CountCuts, CutSequence, Serialize, SerialKeys, axes, code_dtype
from .gpu import WARP, Gpu, kernel_name, stating
from .guards import check_range, match_status, reporting
from .launch import THREADS, blocks_for, for_each
from .scan import SCAN_REGISTERS, scan_by_one_block
from .sort import search
from .warp import add_lower_lanes, count_in_warp

WARPS = THREADS // WARP


@cache
def serialize(spec: Serialize, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Serialize`."""
    mode, bits, dtype = spec.mode, spec.bits, code_dtype(spec.bits)
    x, y, z = axes(mode)

    @inline
    def encode(coords, shifts, code, row):
        place = T.alloc_local((3, 1), "int32")
        own = T.alloc_local((1,), dtype)
        place[0, 0] = coords[row, 1 + x] + nearest_int32(shifts[x])
        place[1, 0] = coords[row, 1 + y] + nearest_int32(shifts[y])
        place[2, 0] = coords[row, 1 + z] + nearest_int32(shifts[z])
        if mode.startswith("hilbert"):
            hilbert_axes(place, bits, 1)
        interleave(place, own, bits, 1)
        code[row] = own[0]

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, shift_x: T.int64, shift_y: T.int64, shift_z: T.int64, status_: T.handle, code_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("serialize")})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        status = T.meta_var(match_status(status_))
        code = match_buffer(code_, (rows,), dtype)
        shifts = T.meta_var((shift_x, shift_y, shift_z))
        low, high = T.meta_var(code_range(bits, shifts))
        check_range(status, coords, rows, low, high)
        for_each(rows, lambda row: encode(coords, shifts, code, row))

    return reporting(kernel)


@cache
def serial_keys(spec: SerialKeys, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `SerialKeys`."""
    dtype = code_dtype(spec.bits)

    @inline
    def write(coords, code, keys, row):
        keys[row, 0] = coords[row, 0]
        wide: T.let = T.Cast("int64", code[row])
        keys[row, 1] = key_column(wide, 0)
        keys[row, 2] = key_column(wide, 1)
        keys[row, 3] = key_column(wide, 2)

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, code_: T.handle, keys_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("serial_keys")})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        code = match_buffer(code_, (rows,), dtype)
        keys = match_buffer(keys_, (rows, 4), "int32")
        for_each(rows, lambda row: write(coords, code, keys, row))

    return kernel


@cache
def count_cuts(spec: CountCuts, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `CountCuts`. Batch indices that were refused before count nowhere."""

    @inline
    def clear(lengths, b):
        lengths[b] = T.int64(0)

    @inline
    def count_rows(keys, lengths, rows):
        with T.launch_thread("blockIdx.x", blocks_for(rows)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            batch = T.alloc_local((1,), "int32")
            row: T.let = T.Cast("int64", block) * THREADS + T.Cast("int64", thread)
            batch[0] = T.int32(-1)
            if row < rows:
                batch[0] = keys[row, 0]
            T.evaluate(count_in_warp(lengths, batch[0], T.And(batch[0] >= 0, batch[0] < BATCH_LIMIT)))

    @inline
    def sum_up(lengths, size, total):
        """windows and keys of all batch elements, by one block"""
        with T.launch_thread("blockIdx.x", 1):
            thread = T.launch_thread("threadIdx.x", THREADS)
            sums = T.alloc_local((2,), "int64")
            parts = T.alloc_shared((2, WARPS), "int64")
            sums[0] = T.int64(0)
            sums[1] = T.int64(0)
            for i in range(BATCH_LIMIT // THREADS):
                length: T.let = lengths[i * THREADS + thread]
                if length > 0:
                    sums[0] = sums[0] + cuts(length, size)
                    sums[1] = sums[1] + cuts(length, size) * T.min(size, length)
            for kind in range(2):
                add_lower_lanes(sums, kind, thread % WARP)
                if thread % WARP == WARP - 1:
                    parts[kind, thread // WARP] = sums[kind]
            T.tvm_storage_sync("shared")
            if thread < 2:
                sums[0] = T.int64(0)
                for warp in range(WARPS):
                    sums[0] = sums[0] + parts[thread, warp]
                total[thread] = sums[0]

    @script.prim_func(s_tir=True)
    def kernel(keys_: T.handle, size: T.int64, lengths_: T.handle, total_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("count_cuts")})
        rows = T.int64()
        keys = match_buffer(keys_, (rows, 4), "int32")
        lengths = match_buffer(lengths_, (BATCH_LIMIT,), "int64")
        total = match_buffer(total_, (2,), "int64")
        for_each(T.int64(BATCH_LIMIT), lambda b: clear(lengths, b))
        count_rows(keys, lengths, rows)
        sum_up(lengths, size, total)

    return kernel


@cache
def cut_sequence(spec: CutSequence, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `CutSequence`. Rows of batch indices that were refused before are taken as row 0."""

    @inline
    def count(lengths, size, shift_sequence, windows, keys, moves, b):
        windows[b] = cuts(lengths[b], size)
        keys[b] = cuts(lengths[b], size) * T.min(size, lengths[b])
        moves[b] = T.int64(0)
        if lengths[b] > size:
            moves[b] = T.floormod(shift_sequence, lengths[b])

    @inline
    def find(firsts, count, place, found):
        """found[0] = the last of `count` parts that begin at or before a place; firsts [count] ascend"""
        search(found, count, lambda part: T.Cast("int64", firsts[part]) <= place)
        found[0] = found[0] - 1

    @inline
    def write_query(order, lengths, moves, rows_before, q_order, place):
        found = T.alloc_local((2,), "int64")
        q_order[place] = T.int32(0)
        if place < rows_before[BATCH_LIMIT]:
            find(rows_before, T.int64(BATCH_LIMIT), place, found)
            first: T.let = rows_before[found[0]]
            q_order[place] = order[first + wrapped(moves[found[0]] + place - first, lengths[found[0]])]

    @inline
    def write_window(
        lengths, size, moves, rows_before, windows_before, keys_before, q_offsets, k_offsets, starts, batches, entry
    ):
        """where queries and keys of a window end, its batch element and the place of its first key there"""
        found = T.alloc_local((2,), "int64")
        q_offsets[entry] = T.int32(0)
        k_offsets[entry] = T.int32(0)
        if T.And(entry > 0, entry <= windows_before[BATCH_LIMIT]):
            find(windows_before, T.int64(BATCH_LIMIT), entry - 1, found)
            b: T.let = found[0]
            length: T.let = lengths[b]
            reach: T.let = T.min(size, length)
            windows: T.let = windows_before[b + 1] - windows_before[b]
            i: T.let = entry - 1 - windows_before[b]
            q_offsets[entry] = T.Cast("int32", rows_before[b] + (i + 1) * length // windows)
            k_offsets[entry] = T.Cast("int32", keys_before[b] + (i + 1) * reach)
            starts[entry - 1] = first_key(i, length, windows, reach, moves[b])
            batches[entry - 1] = b

    @inline
    def write_key(order, lengths, rows_before, k_offsets, starts, batches, k_order, windows, keys, place):
        found = T.alloc_local((2,), "int64")
        k_order[place] = T.int32(0)
        if place < keys:
            find(k_offsets, windows, place, found)
            b: T.let = batches[found[0]]
            here: T.let = starts[found[0]] + place - T.Cast("int64", k_offsets[found[0]])
            k_order[place] = order[rows_before[b] + wrapped(here, lengths[b])]

    @script.prim_func(s_tir=True)
    def kernel(
        order_: T.handle,
        lengths_: T.handle,
        size: T.int64,
        shift_sequence: T.int64,
        q_order_: T.handle,
        q_offsets_: T.handle,
        k_order_: T.handle,
        k_offsets_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("cut_sequence")})
        rows, keys, entries = T.int64(), T.int64(), T.int64()
        order = match_buffer(order_, (rows,), "int32")
        lengths = match_buffer(lengths_, (BATCH_LIMIT,), "int64")
        q_order = match_buffer(q_order_, (rows,), "int32")
        q_offsets = match_buffer(q_offsets_, (entries,), "int32")
        k_order = match_buffer(k_order_, (keys,), "int32")
        k_offsets = match_buffer(k_offsets_, (entries,), "int32")
        rows_before = T.alloc_buffer((BATCH_LIMIT + 1,), "int64")
        windows_before = T.alloc_buffer((BATCH_LIMIT + 1,), "int64")
        keys_before = T.alloc_buffer((BATCH_LIMIT + 1,), "int64")
        scan_by_one_block(lengths, rows_before, T.int64(BATCH_LIMIT))
        moves = T.alloc_buffer((BATCH_LIMIT,), "int64")
        starts = T.alloc_buffer((entries,), "int64")
        batches = T.alloc_buffer((entries,), "int64")
        for_each(T.int64(BATCH_LIMIT), lambda b: count(lengths, size, shift_sequence, windows_before, keys_before, moves, b))
        scan_by_one_block(windows_before, windows_before, T.int64(BATCH_LIMIT))
        scan_by_one_block(keys_before, keys_before, T.int64(BATCH_LIMIT))
        for_each(rows, lambda place: write_query(order, lengths, moves, rows_before, q_order, place))
        for_each(
            entries,
            lambda entry: write_window(
                *(lengths, size, moves, rows_before, windows_before, keys_before),
                *(q_offsets, k_offsets, starts, batches, entry),
            ),
        )
        for_each(
            keys,
            lambda place: write_key(
                *(order, lengths, rows_before, k_offsets, starts, batches, k_order),
                *(windows_before[BATCH_LIMIT], keys_before[BATCH_LIMIT], place),
            ),
        )

    return stating(kernel, SCAN_REGISTERS)
