"""Images resized by bilinear interpolation.

out[b, c, i, j] = sum over the two rows and the two columns around the place (y_i, x_j), each weighed by 1 less its distance

where y_i = (i + 1/2) H / H' - 1/2, not below 0, or with `align_corners` i (H - 1) / (H' - 1); x_j likewise along the columns. A
row or column behind the last one is the last one. As a place is a fraction of whole numbers, row and distance are those of its
quotient and remainder, without an error in between.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def place(i, size, size_out, align_corners: bool) -> tuple:
    """(numerator, denominator) of the place in an axis of `size` that output i of `size_out` has: ints, arrays or expressions;
    the numerator may be negative, and the denominator 0 for one output."""
    if align_corners:
        return i * (size - 1), size_out - 1
    return (2 * i + 1) * size - size_out, 2 * size_out


def naive(x, size, align_corners=False):
    """Oracle, in float64. x [B, C, H, W] -> [B, C, *size]."""
    out = x.astype(np.float64)
    for axis, count in zip((2, 3), size, strict=True):
        have = out.shape[axis]
        numerator, denominator = place(np.arange(count), have, count, align_corners)
        at = np.maximum(numerator, 0) / max(denominator, 1)
        low = np.minimum(at.astype(int), max(have - 1, 0))
        share = (at - low).reshape(-1, *[1] * (3 - axis))
        high = np.minimum(low + 1, have - 1)
        out = (1 - share) * np.take(out, low, axis) + share * np.take(out, high, axis)
    return out


@dataclass(frozen=True)
class ResizeBilinear(Spec):
    """(x, out), of any sizes: `dtype` [B, C, H, W] and [B, C, H', W']. Raises ValueError where there is nothing to resize."""

    family: ClassVar[str] = "resize_bilinear"
    dtype: str = "float32"
    align_corners: bool = False
