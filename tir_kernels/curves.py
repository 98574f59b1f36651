"""Places along space-filling curves and windows of them, for any target; macros take many rows, as lanes of vectors, or one."""

from collections.abc import Sequence

from tvm.script import tirx as T

from .integers import nearest_int32
from .script import inline
from .spec.coordinate_index import BATCH_LIMIT
from .vector_math import bind

KEY_BITS = 16  # of a code that go into one column of a key, less 2^15: the range of coordinates


def code_range(bits: int, shifts: Sequence) -> tuple[tuple, tuple]:
    """The least and the largest batch, x, y, z that have a code of `bits` bits an axis after `shifts`, three int64."""
    low, high = (tuple(nearest_int32(end - shift) for shift in shifts) for end in (0, (1 << bits) - 1))
    return (0, *low), (BATCH_LIMIT - 1, *high)


@inline
def unturn(axes, level, axis, lanes):
    """Skilling's step for a level and an axis of axes [3, lanes]: mirror the octants below, or exchange two axes in them."""
    for lane in T.vectorized(lanes):
        low: T.let = (T.int32(1) << level) - 1
        upper: T.let = 0 - (axes[axis, lane] >> level & 1)  # a mask
        exchanged: T.let = (axes[0, lane] ^ axes[axis, lane]) & low & ~upper
        axes[0, lane] = axes[0, lane] ^ (upper & low) ^ exchanged
        axes[axis, lane] = axes[axis, lane] ^ exchanged


@inline
def hilbert_axes(axes, bits, lanes):
    """Replace the coordinates axes [3, lanes] of `bits` bits by those whose Z-order is their place along the Hilbert curve."""
    for i in range(bits - 1):
        unturn(axes, bits - 1 - i, 0, lanes)
        unturn(axes, bits - 1 - i, 1, lanes)
        unturn(axes, bits - 1 - i, 2, lanes)
    for lane in T.vectorized(lanes):  # what is left is a Gray code
        second: T.let = axes[1, lane] ^ axes[0, lane]
        third: T.let = axes[2, lane] ^ second
        pairs: T.let = third >> 1 ^ third >> 2
        fours: T.let = pairs ^ pairs >> 2
        eights: T.let = fours ^ fours >> 4
        flips: T.let = eights ^ eights >> 8  # every bit: the parity of the sixteen above it
        axes[0, lane] = axes[0, lane] ^ flips
        axes[1, lane] = second ^ flips
        axes[2, lane] = third ^ flips


@inline
def interleave(axes, codes, bits, lanes):
    """codes [lanes]: the bits of axes [3, lanes], the most significant ones first, and those of the first axis first."""
    for lane in T.vectorized(lanes):
        codes[lane] = T.Cast(codes.dtype, 0)
    for i in T.unroll(bits):
        for axis in T.unroll(3):
            for lane in T.vectorized(lanes):
                codes[lane] = codes[lane] << 1 | T.Cast(codes.dtype, axes[axis, lane] >> (bits - 1 - i) & 1)


def key_column(code, place: int):
    """A column of the coordinates that ascend as codes do, an int32 from an int64; the first has the highest bits."""
    return T.Cast("int32", code >> (KEY_BITS * (2 - place)) & ((1 << KEY_BITS) - 1)) - (1 << KEY_BITS - 1)


def cuts(length, size):
    """Windows of `size` rows, at least 1, that `length` rows are cut into; no sum of the two, as a size may be any int64."""
    return T.Select(length > 0, T.truncdiv(length - 1, size) + 1, T.int64(0))


def wrapped(place, length):
    """A place from 0 to 2 * length - 1, modulo `length`."""
    return T.Select(place < length, place, place - length)


def first_key(i, length, count, reach, move):
    """The place of the first key of window i of `count`, each of which reaches over `reach` of `length` rows.

    What is divided lies above -length / 2 and below length, so with `move`, a place, no division brings it back.
    """
    place = bind(move + T.floordiv((2 * i + 1) * length - count * reach, 2 * count))
    return T.Select(place < 0, place + length, wrapped(place, length))
