"""Voxels along a space-filling curve, and windows of that sequence (TRELLIS, arXiv:2412.01506, "serialized attention").

    z_order   the bits of x, y, z interleaved, x the most significant of every three (Morton)
    hilbert   the place along the Hilbert curve (Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707, 2004)
    *_transposed   the same after exchanging x and y

Codes have `bits` bits an axis: coordinates run from 0 to 2^bits - 1 after the shift. 10 are TRELLIS' codes; 16 take all
coordinates. The Z-order does not depend on their number; another number of levels turns the Hilbert curve.

A batch element of L rows in the order of their codes is cut into n = ceil(L / size) windows. Places count modulo L, a
window is centred, and with n > 1 everything moves on by s places (`shift_sequence`):

    queries of window i   places s + floor(i L / n) to s + floor((i + 1) L / n): every row is in one window
    keys of window i      min(size, L) places from s + floor((i + 1/2) L / n - min(size, L) / 2): neighbours overlap
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import ClassVar

import numpy as np

from . import Spec

MODES = ("z_order", "z_order_transposed", "hilbert", "hilbert_transposed")
BITS = 10  # of an axis, as in TRELLIS
MOST_BITS = 16  # which all coordinates have


def code_dtype(bits: int) -> str:
    """The dtype of codes."""
    return "int32" if 3 * bits < 32 else "int64"


def naive(coords, mode="z_order", shift=(0, 0, 0), bits=BITS):
    """Oracle. coords int32 [N, 4] -> codes of `code_dtype` [N]."""
    x = (np.asarray(coords)[:, 1:].astype("int64") + shift)[:, axes(mode)].T.copy()  # [3, N]
    if mode.startswith("hilbert"):
        # Level by level, the smaller cube is the first one turned: mirrored, or with two axes exchanged.
        for low in [(1 << bit) - 1 for bit in range(bits - 1, 0, -1)]:
            for axis in range(3):
                upper = (x[axis] & (low + 1)) > 0
                exchanged = np.where(upper, 0, (x[0] ^ x[axis]) & low)
                x[0] ^= np.where(upper, low, exchanged)
                x[axis] ^= exchanged
        # What is left is a Gray code.
        x[1] ^= x[0]
        x[2] ^= x[1]
        for bit in range(1, bits):
            x ^= np.where(x[2] >> bit & 1, (1 << bit) - 1, 0)
    code = np.zeros(len(coords), "int64")
    for bit in range(bits):
        for axis in range(3):
            code |= (x[axis] >> bit & 1) << 3 * bit + 2 - axis
    return code.astype(code_dtype(bits))


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


def axes(mode: str) -> list[int]:
    """The axes in the order of their weight in a code."""
    return [1, 0, 2] if mode.endswith("_transposed") else [0, 1, 2]


@dataclass(frozen=True)
class Serialize(Spec):
    """(coords int32 [N, 4], shift along x, y, z, each an int64, code of `code_dtype` [N]).

    `mode`: one of `MODES`; `bits`: 1 to `MOST_BITS`. ValueError for a row outside of 0 to 2^bits - 1 after the shift.
    """

    family: ClassVar[str] = "serialize"
    mode: str
    bits: int = BITS


@dataclass(frozen=True)
class SerialKeys(Spec):
    """(coords int32 [N, 4], code [N], keys int32 [N, 4]): coordinates that ascend as (batch, code), for codes of `bits`."""

    family: ClassVar[str] = "serial_keys"
    bits: int = BITS


@dataclass(frozen=True)
class CountCuts(Spec):
    """(keys int32 [N, 4], size int64, lengths int64 [BATCH_LIMIT], total int64 [2]), for windows of `size` rows.

    lengths: the rows of each batch element; total: windows and keys of all.
    """

    family: ClassVar[str] = "count_cuts"


@dataclass(frozen=True)
class CutSequence(Spec):
    """(order int32 [N], lengths, size int64, shift_sequence int64, q_order int32 [N], q_offsets int32 [W + 1],
    k_order int32 [M], k_offsets int32 [W + 1]), for windows of `size` rows.

    order: the rows of each batch element by code, those of one element together; lengths as `CountCuts` returns them.
    """

    family: ClassVar[str] = "cut_sequence"
