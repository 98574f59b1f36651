"""Images resized by bilinear interpolation.

out[b, c, i, j] = sum over the two rows and the two columns around the place (y_i, x_j), each weighed by 1 less its distance

where y_i = (i + 1/2) H / H' - 1/2, not below 0, or with `align_corners` i (H - 1) / (H' - 1); x_j likewise along the columns. A
row or column behind the last one is the last one. Places are float32, rounded as torch does on a CPU: the quotient of the
sizes, and then the place, once. Exact places would differ from torch by 3e-5 in images of noise some hundred pixels wide.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive(x, size, align_corners=False):
    """Oracle, in float64 but for places. x [B, C, H, W] -> [B, C, *size]."""
    out = x.astype(np.float64)
    for axis, count in zip((2, 3), size, strict=True):
        have, numbers = out.shape[axis], np.arange(count, dtype=np.float64)
        if align_corners:
            scale, at = np.float32(have - 1) / np.float32(max(count - 1, 1)), numbers
        else:
            scale, at = np.float32(have) / np.float32(max(count, 1)), numbers + 0.5
        at = np.maximum(np.float64(scale) * at - (0 if align_corners else 0.5), 0).astype(np.float32)
        low = np.minimum(at.astype(int), have - 1)
        share = (at - low.astype(np.float32)).astype(np.float64).reshape(-1, *[1] * (3 - axis))
        out = (1 - share) * np.take(out, low, axis) + share * np.take(out, np.minimum(low + 1, have - 1), axis)
    return out


@dataclass(frozen=True)
class ResizeBilinear(Spec):
    """(x, out), of any sizes: `dtype` [B, C, H, W] and [B, C, H', W']. Raises ValueError where there is nothing to resize."""

    family: ClassVar[str] = "resize_bilinear"
    dtype: str = "float32"
    align_corners: bool = False
