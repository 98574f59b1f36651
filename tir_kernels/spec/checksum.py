"""A checksum over the bits of an array: 64 bits that tell whether it still holds what it held.

    chunk:  h[l] = l;  for each 64 words w of it:  h[l] = mix(h[l] ^ w[l]),  mix(h) = g ^ (g >> 15) with g = h * ODD mod 2^32
            sum = fold(number of the chunk, h[0], h[1], ...)
    all:    fold(number N of words, sum of chunk 0, sum of chunk 1, ...), at most 64 chunks, of `chunk_words(N)` words each
    fold(s, h, ...) = fold(t ^ (t >> 32), ...) with t = (s ^ h) * ODD_64 mod 2^64;  fold(s) = s

Every step can be undone, so one word that changes always changes the result; what changes more words goes unseen once in 2^32
times or less, wherever they stand. It is no protection against somebody who means to deceive.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec

LANES = 64  # words that are mixed side by side
CHUNK = 16384  # words that one task reads at least; whoever reads them, the result is the same
CHUNKS = 64  # at most
ODD = 0x9E3779B1
ODD_64 = 0x2545F4914F6CDD1D


def chunk_words(n: int) -> int:
    """Words of a chunk but for the last, of `n`: whole rows of lanes."""
    return max(CHUNK, -(-n // (CHUNKS * LANES)) * LANES)


def naive(words) -> int:
    """Oracle. words uint32 or uint16 [N] -> a number of 64 bits."""
    total = len(words)
    size = chunk_words(len(words))
    for chunk in range(-(-len(words) // size)):
        h = np.arange(LANES, dtype="uint32")
        own = words[chunk * size : (chunk + 1) * size].astype("uint32")
        for first in range(0, len(own), LANES):
            row = own[first : first + LANES]
            g = (h[: len(row)] ^ row) * np.uint32(ODD)
            h[: len(row)] = g ^ (g >> np.uint32(15))
        total = _fold(total, _fold(chunk, *h.tolist()))
    return total


def _fold(total: int, *values: int) -> int:
    for value in values:
        total = (total ^ value) * ODD_64 % 2**64
        total ^= total >> 32
    return total


@dataclass(frozen=True)
class Checksum(Spec):
    """(words [N]) -> int64, the 64 bits as it were signed, for any N. `dtype` of the words: "uint32" or "uint16".

    A device returns nothing: there it is (words [N], out int64 [1]).
    """

    dtype: str

    family: ClassVar[str] = "checksum"
