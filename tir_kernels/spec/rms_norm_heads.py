"""RMS normalisation of every attention head, as upstream applies it to queries and keys.

out[i, h, :] = x[i, h, :] / max(|x[i, h, :]|, 1e-12) * gamma[h, :] * sqrt(D)
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec

SMALLEST_NORM = 1e-12


def naive(x, gamma):
    """Oracle, in float64. x [N, H, D], gamma [H, D] -> [N, H, D]."""
    x = x.astype(np.float64)
    norm = np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), SMALLEST_NORM)
    return x / norm * gamma * np.sqrt(x.shape[-1])


@dataclass(frozen=True)
class RmsNormHeads(Spec):
    """(x `dtype` [N, heads, depth], gamma float32 [heads, depth], out `dtype` [N, heads, depth])."""

    family: ClassVar[str] = "rms_norm_heads"
    heads: int
    depth: int
    dtype: str = "float32"
