"""Weighted sums of rows: `out[i, :] = sum over j of weight[i, j] * x[index[i, j], :]`, without those whose index is -1.

Sums are float32, in the order of j. With what `trilinear` says of points, this takes voxels back to points.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive(x, index, weight):
    """Oracle, in float64. x [N, C], index int [P, K] from -1 to N - 1, weight [P, K] -> [P, C]."""
    out = np.zeros((len(index), x.shape[1]))
    for rows, factors in zip(index.T, weight.T, strict=True):
        there = rows >= 0
        out[there] += factors[there, None].astype(np.float64) * x[rows[there]].astype(np.float64)
    return out


@dataclass(frozen=True)
class Interpolate(Spec):
    """(x `dtype` [N, channels], index int32 [P, terms], weight float32 [P, terms], out `dtype` [P, channels]).

    Raises ValueError for the first entry of the index that is not in -1 .. N - 1.
    """

    family: ClassVar[str] = "interpolate"
    channels: int
    terms: int
    dtype: str = "float32"
