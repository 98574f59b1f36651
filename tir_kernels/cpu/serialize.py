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
from .coordinate_index import ROW_CHUNK
from .guards import check_range, extremes
from .isa import Isa

LANES = 16  # rows at once


@cache
def serialize(spec: Serialize, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Serialize`."""
    mode, bits, dtype = spec.mode, spec.bits, code_dtype(spec.bits)
    x, y, z = axes(mode)

    @inline
    def encode(coords, shift, first, count, code):
        """code[first + lane] for `count` lanes, of which there is at least one; shift [3]: in the order of `axes`"""
        axes = T.alloc_buffer((3, LANES), "int32")
        codes = T.alloc_buffer((LANES,), dtype)
        for lane in range(LANES):
            row: T.let = first + T.min(T.Cast("int64", lane), count - 1)
            axes[0, lane] = coords[row, 1 + x]
            axes[1, lane] = coords[row, 1 + y]
            axes[2, lane] = coords[row, 1 + z]
        for axis in T.unroll(3):
            for lane in T.vectorized(LANES):
                axes[axis, lane] = axes[axis, lane] + shift[axis]
        if mode.startswith("hilbert"):
            hilbert_axes(axes, bits, LANES)
        interleave(axes, codes, bits, LANES)
        for lane in range(T.min(count, T.int64(LANES))):
            code[first + lane] = codes[lane]

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, shift_x: T.int64, shift_y: T.int64, shift_z: T.int64, code_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "serialize"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        code = match_buffer(code_, (rows,), dtype)
        lowest = T.alloc_buffer((4,), "int32")
        highest = T.alloc_buffer((4,), "int32")
        moved = T.alloc_buffer((3,), "int32")
        extremes(coords, rows, lowest, highest)
        shifts = T.meta_var((shift_x, shift_y, shift_z))
        low, high = T.meta_var(code_range(bits, shifts))
        check_range(coords, rows, lowest, highest, low, high)
        moved[0] = nearest_int32(shifts[x])
        moved[1] = nearest_int32(shifts[y])
        moved[2] = nearest_int32(shifts[z])
        for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):
            for i in range((T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK) + LANES - 1) // LANES):
                first: T.let = chunk * ROW_CHUNK + i * LANES
                encode(coords, moved, first, rows - first, code)

    return kernel


@cache
def serial_keys(spec: SerialKeys, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SerialKeys`."""
    dtype = code_dtype(spec.bits)

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, code_: T.handle, keys_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "serial_keys"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        code = match_buffer(code_, (rows,), dtype)
        keys = match_buffer(keys_, (rows, 4), "int32")
        for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):
            for i in range(T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK)):
                row: T.let = chunk * ROW_CHUNK + i
                keys[row, 0] = coords[row, 0]
                wide: T.let = T.Cast("int64", code[row])
                keys[row, 1] = key_column(wide, 0)
                keys[row, 2] = key_column(wide, 1)
                keys[row, 3] = key_column(wide, 2)

    return kernel


@cache
def count_cuts(spec: CountCuts, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `CountCuts`."""

    @script.prim_func(s_tir=True)
    def kernel(keys_: T.handle, size: T.int64, lengths_: T.handle, total_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "count_cuts"})
        rows = T.int64()
        keys = match_buffer(keys_, (rows, 4), "int32")
        lengths = match_buffer(lengths_, (BATCH_LIMIT,), "int64")
        total = match_buffer(total_, (2,), "int64")
        for b in range(BATCH_LIMIT):
            lengths[b] = T.int64(0)
        for row in range(rows):
            lengths[T.Cast("int64", keys[row, 0])] += 1
        total[0] = T.int64(0)
        total[1] = T.int64(0)
        for b in range(BATCH_LIMIT):
            count: T.let = cuts(lengths[b], size)
            total[0] += count
            total[1] += count * T.min(size, lengths[b])

    return kernel


@cache
def cut_sequence(spec: CutSequence, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `CutSequence`."""

    @inline
    def cut(order, size, shift_sequence, first, length, q_order, q_offsets, k_order, k_offsets, window, key):
        """the windows of one batch element, whose rows are order[first : first + length]; `window` and `key` move on"""
        count: T.let = cuts(length, size)
        reach: T.let = T.min(size, length)
        move: T.let = T.if_then_else(count > 1, T.floormod(shift_sequence, length), T.int64(0))
        for i in range(length):
            q_order[first + i] = order[first + wrapped(move + i, length)]
        for i in range(count):
            start: T.let = first_key(i, length, count, reach, move)
            for j in range(reach):
                k_order[key[0] + i * reach + j] = order[first + wrapped(start + j, length)]
            q_offsets[window[0] + i + 1] = T.Cast("int32", first + (i + 1) * length // count)
            k_offsets[window[0] + i + 1] = T.Cast("int32", key[0] + (i + 1) * reach)
        window[0] += count
        key[0] += count * reach

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
        T.func_attr({"tirx.noalias": True, "global_symbol": "cut_sequence"})
        rows, keys, entries = T.int64(), T.int64(), T.int64()
        order = match_buffer(order_, (rows,), "int32")
        lengths = match_buffer(lengths_, (BATCH_LIMIT,), "int64")
        q_order = match_buffer(q_order_, (rows,), "int32")
        q_offsets = match_buffer(q_offsets_, (entries,), "int32")
        k_order = match_buffer(k_order_, (keys,), "int32")
        k_offsets = match_buffer(k_offsets_, (entries,), "int32")
        first = T.alloc_buffer((1,), "int64")
        window = T.alloc_buffer((1,), "int64")
        key = T.alloc_buffer((1,), "int64")
        first[0] = T.int64(0)
        window[0] = T.int64(0)
        key[0] = T.int64(0)
        q_offsets[0] = T.int32(0)
        k_offsets[0] = T.int32(0)
        for b in range(BATCH_LIMIT):
            if lengths[b] > 0:
                cut(order, size, shift_sequence, first[0], lengths[b], q_order, q_offsets, k_order, k_offsets, window, key)
                first[0] += lengths[b]

    return kernel
