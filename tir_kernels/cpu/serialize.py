"""Voxels along a space-filling curve, and windows of that sequence (TRELLIS, arXiv:2412.01506, "serialized attention").

    z_order   the bits of x, y, z interleaved, x the most significant of every three (Morton)
    hilbert   the place along the Hilbert curve (Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707, 2004)
    *_transposed   the same after exchanging x and y

Codes have 10 bits an axis: coordinates run from 0 to 1023 after the shift. More levels would turn the Hilbert curve.

A batch element of L rows in the order of their codes is cut into n = ceil(L / size) windows. Places count modulo L, a
window is centred, and with n > 1 everything moves on by s places (`shift_sequence`):

    queries of window i   places s + floor(i L / n) to s + floor((i + 1) L / n): every row is in one window
    keys of window i      min(size, L) places from s + floor((i + 1/2) L / n - min(size, L) / 2): neighbours overlap

Kernels, beside those that group rows (`windows`):

    serialize       (coords [N, 4], code int32 [N])
    serial_keys     (coords, code, keys int32 [N, 4])                  ascend as (batch, code)
    count_cuts      (keys, lengths int64 [BATCH_LIMIT], size [2])    rows of each batch element; windows, keys of all
    cut_sequence    (order, lengths, q_order, q_offsets, k_order, k_offsets)
"""

from fractions import Fraction
from functools import cache
from math import floor

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from .coordinate_index import BATCH_LIMIT, ROW_CHUNK, check_range, extremes

MODES = ("z_order", "z_order_transposed", "hilbert", "hilbert_transposed")
BITS = 10  # of an axis, as in TRELLIS
LANES = 16  # rows at once
KEY_BITS = 15  # of a code that go into one column of a key, whose range is that of coordinates


def naive(coords, mode="z_order", shift=(0, 0, 0)):
    """Oracle. coords int32 [N, 4] -> codes int32 [N]."""
    x = (np.asarray(coords)[:, 1:].astype("int64") + shift)[:, _axes(mode)].T.copy()  # [3, N]
    if mode.startswith("hilbert"):
        # Level by level, the smaller cube is the first one turned: mirrored, or with two axes exchanged.
        for low in [(1 << bit) - 1 for bit in range(BITS - 1, 0, -1)]:
            for axis in range(3):
                upper = (x[axis] & (low + 1)) > 0
                exchanged = np.where(upper, 0, (x[0] ^ x[axis]) & low)
                x[0] ^= np.where(upper, low, exchanged)
                x[axis] ^= exchanged
        # What is left is a Gray code.
        x[1] ^= x[0]
        x[2] ^= x[1]
        for bit in range(1, BITS):
            x ^= np.where(x[2] >> bit & 1, (1 << bit) - 1, 0)
    code = np.zeros(len(coords), "int64")
    for bit in range(BITS):
        for axis in range(3):
            code |= (x[axis] >> bit & 1) << 3 * bit + 2 - axis
    return code.astype("int32")


def naive_partition(coords, code, size: int, shift_sequence: int = 0):
    """Oracle. coords int32 [N, 4], code int [N] -> q_order int32 [N], q_offsets [W + 1], k_order [M], k_offsets [W + 1]."""
    queries, keys = [], []
    for b in np.unique(coords[:, 0]):
        rows = np.flatnonzero(coords[:, 0] == b)
        rows = rows[np.argsort(code[rows], kind="stable")]
        length, count, reach = len(rows), -(-len(rows) // size), min(size, len(rows))
        move = shift_sequence if count > 1 else 0
        for i in range(count):
            first, last = (move + floor(Fraction(j * length, count)) for j in (i, i + 1))
            start = move + floor(Fraction((2 * i + 1) * length, 2 * count) - Fraction(reach, 2))
            queries.append(rows[np.arange(first, last) % length])
            keys.append(rows[np.arange(start, start + reach) % length])
    parts = []
    for windows in (queries, keys):
        parts += [np.concatenate([[], *windows]), np.cumsum([0, *map(len, windows)])]
    return tuple(part.astype("int32") for part in parts)


def _axes(mode: str) -> list[int]:
    """The axes in the order of their weight in a code."""
    return [1, 0, 2] if mode.endswith("_transposed") else [0, 1, 2]


@inline
def unturn(axes, level, axis):
    """Skilling's step for a level and an axis of axes [3, LANES]: mirror the octants below, or exchange two axes in them."""
    for lane in T.vectorized(LANES):
        low: T.let = (T.int32(1) << level) - 1
        upper: T.let = 0 - (axes[axis, lane] >> level & 1)  # a mask
        exchanged: T.let = (axes[0, lane] ^ axes[axis, lane]) & low & ~upper
        axes[0, lane] = axes[0, lane] ^ (upper & low) ^ exchanged
        axes[axis, lane] = axes[axis, lane] ^ exchanged


@inline
def hilbert_axes(axes):
    """Replace the coordinates axes [3, LANES] by those whose Z-order is their place along the Hilbert curve."""
    for i in range(BITS - 1):
        unturn(axes, BITS - 1 - i, 0)
        unturn(axes, BITS - 1 - i, 1)
        unturn(axes, BITS - 1 - i, 2)
    for lane in T.vectorized(LANES):  # what is left is a Gray code
        second: T.let = axes[1, lane] ^ axes[0, lane]
        third: T.let = axes[2, lane] ^ second
        pairs: T.let = third >> 1 ^ third >> 2
        fours: T.let = pairs ^ pairs >> 2
        flips: T.let = fours ^ fours >> 4 ^ third >> 9  # every bit: the parity of those above it
        axes[0, lane] = axes[0, lane] ^ flips
        axes[1, lane] = second ^ flips
        axes[2, lane] = third ^ flips


@cache
def serialize(mode: str, shift: tuple[int, int, int]) -> tvm.tirx.PrimFunc:
    """PrimFunc (coords int32 [N, 4], code int32 [N]); ValueError for a row outside of 0 to 1023 after the shift."""
    x, y, z = _axes(mode)
    low = (0, *(-s for s in shift))
    high = (BATCH_LIMIT - 1, *((1 << BITS) - 1 - s for s in shift))

    @inline
    def encode(coords, first, count, code):
        """code[first + lane] for `count` lanes, of which there is at least one"""
        axes = T.alloc_buffer((3, LANES), "int32")
        codes = T.alloc_buffer((LANES,), "int32")
        for lane in range(LANES):
            row: T.let = first + T.min(T.Cast("int64", lane), count - 1)
            axes[0, lane] = coords[row, 1 + x] + shift[x]
            axes[1, lane] = coords[row, 1 + y] + shift[y]
            axes[2, lane] = coords[row, 1 + z] + shift[z]
        if mode.startswith("hilbert"):
            hilbert_axes(axes)
        for lane in T.vectorized(LANES):
            codes[lane] = 0
        for i in T.unroll(BITS):
            for axis in T.unroll(3):
                for lane in T.vectorized(LANES):
                    codes[lane] = codes[lane] << 1 | axes[axis, lane] >> (BITS - 1 - i) & 1
        for lane in range(T.min(count, T.int64(LANES))):
            code[first + lane] = codes[lane]

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, code_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "serialize"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        code = match_buffer(code_, (rows,), "int32")
        lowest = T.alloc_buffer((4,), "int32")
        highest = T.alloc_buffer((4,), "int32")
        extremes(coords, rows, lowest, highest)
        check_range(coords, rows, lowest, highest, low, high)
        for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):
            for i in range((T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK) + LANES - 1) // LANES):
                first: T.let = chunk * ROW_CHUNK + i * LANES
                encode(coords, first, rows - first, code)

    return kernel


@cache
def serial_keys() -> tvm.tirx.PrimFunc:
    """PrimFunc (coords int32 [N, 4], code int32 [N], keys int32 [N, 4]): coordinates that ascend as (batch, code)."""

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, code_: T.handle, keys_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "serial_keys"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        code = match_buffer(code_, (rows,), "int32")
        keys = match_buffer(keys_, (rows, 4), "int32")
        for chunk in T.parallel((rows + ROW_CHUNK - 1) // ROW_CHUNK):
            for i in range(T.min(T.int64(ROW_CHUNK), rows - chunk * ROW_CHUNK)):
                row: T.let = chunk * ROW_CHUNK + i
                keys[row, 0] = coords[row, 0]
                keys[row, 1] = code[row] >> KEY_BITS
                keys[row, 2] = code[row] & ((1 << KEY_BITS) - 1)
                keys[row, 3] = 0

    return kernel


@cache
def count_cuts(size: int) -> tvm.tirx.PrimFunc:
    """PrimFunc (keys int32 [N, 4], lengths int64 [BATCH_LIMIT], total int64 [2]).

    lengths: the rows of each batch element; total: windows and keys of all.
    """

    @script.prim_func(s_tir=True)
    def kernel(keys_: T.handle, lengths_: T.handle, total_: T.handle):
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
            count: T.let = (lengths[b] + size - 1) // size
            total[0] += count
            total[1] += count * T.min(T.int64(size), lengths[b])

    return kernel


@cache
def cut_sequence(size: int, shift_sequence: int) -> tvm.tirx.PrimFunc:
    """PrimFunc (order int32 [N], lengths, q_order int32 [N], q_offsets int32 [W + 1], k_order int32 [M], k_offsets).

    order: the rows of each batch element by code, those of one element together; lengths as `count_cuts` returns them.
    """

    def wrapped(place, length):
        return T.Select(place < length, place, place - length)

    @inline
    def cut(order, first, length, q_order, q_offsets, k_order, k_offsets, window, key):
        """the windows of one batch element, whose rows are order[first : first + length]; `window` and `key` move on"""
        count: T.let = (length + size - 1) // size
        reach: T.let = T.min(T.int64(size), length)
        move: T.let = T.if_then_else(count > 1, T.floormod(T.int64(shift_sequence), length), T.int64(0))
        for i in range(length):
            q_order[first + i] = order[first + wrapped(move + i, length)]
        for i in range(count):
            start: T.let = T.floormod(move + T.floordiv((2 * i + 1) * length - count * reach, 2 * count), length)
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
                cut(order, first[0], lengths[b], q_order, q_offsets, k_order, k_offsets, window, key)
                first[0] += lengths[b]

    return kernel
