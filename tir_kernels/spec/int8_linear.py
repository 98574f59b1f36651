"""The linear layer with integer products: what `Linear` computes where it has them.

    x' = H(x * signs) / 64        over the channels, in float32
    s = max |x'| / levels         of each row; q = x' / s rounded to integers
    x @ weight.T                  about s * (sums of q * q of the weight, exact in int32) * (64 s of the weight)

The weight is rounded in the same way, each output channel for itself. H is the Hadamard matrix of order 64 over channels that
lie a 64th of the row apart. It spreads a large value over 64 channels, so that the others keep their bits, and signs chosen at
random keep the mean of a row from ending up in one channel. H H = 64 I and signs are 1 or -1, so products stay what they were.

A few channels may be kept apart: they are cleared before the rotation, and their products are added in float32.

Channels are padded by zeros to a multiple of 64. A row whose x' are all below 2^-100 counts as zeros. A row of x that holds
an infinity or NaN gives NaN in all its outputs; one of the weight, NaN in its column.
"""

from collections.abc import Sequence
from math import isqrt

import numpy as np

from .linear import epilogue

GROUP = 64  # channels that a rotation mixes
APART = 8  # channels that may be kept apart, at most
MOST_DEPTH = 1 << 16  # input channels: sums of 255 * 127 over as many are below 2^31
LEAST = float(2.0**-100)  # of the largest |x'|


def padded(depth: int) -> int:
    """Channels of a rotated row."""
    return -(-depth // GROUP) * GROUP


def levels(depth: int, bits: int) -> int:
    """The largest integer that a row of `depth` is rounded to; products of ten bits are cut so that no sum passes 2^31."""
    return min((1 << (bits - 1)) - 1, isqrt((2**31 - 1) // max(padded(depth), 1)))


def signs(depth: int) -> np.ndarray:
    """float32 [depth]: 1 / 64 or -1 / 64. A hash of the channel decides."""
    number = np.arange(depth, dtype=np.uint32) * np.uint32(0x9E3779B1)
    number = (number ^ (number >> np.uint32(15))) * np.uint32(0x85EBCA77)
    return np.where(number >> np.uint32(31), np.float32(-1 / GROUP), np.float32(1 / GROUP))


def rotate(x: np.ndarray) -> np.ndarray:
    """x' of float32 [N, K]: float32 [N, padded(K)], each stage of the transform rounded as kernels round it."""
    rows, depth = x.shape
    out = np.zeros((rows, padded(depth)), np.float32)
    with np.errstate(invalid="ignore", under="ignore"):
        out[:, :depth] = x.astype(np.float32) * signs(depth)
        width = 1
        while width < GROUP:
            pairs = out.reshape(rows, GROUP // (2 * width), 2, width * out.shape[1] // GROUP)
            low, high = pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]
            out = np.stack([low, high], 2).reshape(out.shape)
            width *= 2
    return out


def quantize(x: np.ndarray, most: int, apart: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Rows of x [N, K], rotated and rounded to -most .. most: (int64 [N, padded(K)], s float32 [N]).

    s is NaN, and the row of no meaning, where a row of x holds an infinity or NaN.
    """
    x = x.astype(np.float32)
    rest = x.copy()
    rest[:, list(apart)] = 0
    rotated = rotate(rest)
    largest = np.maximum(np.abs(rotated).max(1, initial=0), np.float32(LEAST))
    good = np.isfinite(x).all(1)
    level = np.float32(most) / np.where(good, largest, np.float32(1))
    # one fused multiply-add rounds: of the exact product, to the nearest integer, halves to even
    rounded = np.rint(np.where(good[:, None], rotated, 0).astype(np.float64) * level[:, None].astype(np.float64))
    return rounded.astype(np.int64), np.where(good, largest / np.float32(most), np.float32(np.nan))


def naive(
    x,
    weight,
    bias=None,
    residual=None,
    activation="none",
    gate=None,
    batch_index=None,
    *,
    bits: tuple[int, int] = (8, 8),
    apart: Sequence[int] = (),
):
    """Oracle: integers exact, what follows in float64. Arguments and result as in `linear.naive`.

    `bits` of x and of the weight; `apart`: channels of x that are kept apart.
    """
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    q, scale = quantize(x, levels(x.shape[1], bits[0]), apart)
    of_weight, weight_scale = quantize(weight, levels(x.shape[1], bits[1]))
    # float64 holds these sums, which are below 2^31, exactly
    out = (q.astype(np.float64) @ of_weight.astype(np.float64).T) * scale[:, None].astype(np.float64) * weight_scale * GROUP
    with np.errstate(invalid="ignore", over="ignore"):
        kept = list(apart)
        out = out + x[:, kept].astype(np.float64) @ weight[:, kept].astype(np.float64).T
        return epilogue(out, bias, residual, activation, gate, batch_index)
