"""Pooling over an index: sum, mean, maximum or first of the rows that the index sends to an output row.

    out[o, :] = reduction over the rows i with index[i] == o, in ascending order of i, of x[i, :]

Sums are float32.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .pool import Reduction


def naive(x, index, rows: int, reduction: Reduction):
    """Oracle, in float64. x [N, C], index int [N] from -1 (nowhere) to rows - 1 -> [rows, C]."""
    out = [reduction.naive(x[index == row]) for row in range(rows)]
    return np.stack(out) if out else np.zeros((0, x.shape[1]))


@dataclass(frozen=True)
class SegmentPool(Spec):
    """(x `dtype` [N, channels], index int32 [N], out `dtype` [M, channels]); ValueError for an index not in -1 .. M - 1."""

    family: ClassVar[str] = "segment_pool"
    channels: int
    reduction: Reduction
    dtype: str = "float32"
