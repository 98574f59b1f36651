"""Group normalisation of sparse tensors: statistics over the voxels of a batch element and the channels of a group.

    out[i, c] = act((x[i, c] - mean[b, g]) / sqrt(variance[b, g] + eps) * weight[c] + bias[c])

where row i belongs to batch element b and channel c to group g.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .activation import ACTIVATIONS


def naive(x, batch_offsets, weight, bias, groups: int, eps=1e-5, activation="none"):
    """Oracle, in float64. x [N, C], batch_offsets int [B + 1], weight, bias [C] -> [N, C]."""
    out = np.zeros(x.shape)
    for first, last in itertools.pairwise(batch_offsets):
        if first < last:
            part = x[first:last].astype(np.float64).reshape(last - first, groups, -1)
            normal = (part - part.mean((0, 2), keepdims=True)) / np.sqrt(part.var((0, 2), keepdims=True) + eps)
            out[first:last] = normal.reshape(last - first, -1) * weight + bias
    return ACTIVATIONS[activation](out)


@dataclass(frozen=True)
class GroupNorm(Spec):
    """(x, batch_offsets, weight, bias, out).

    x, out `dtype` [N, channels]; batch_offsets int32 [B + 1], ascending from 0 to N, or ValueError; weight, bias float32
    [channels]; `activation`: one of `ACTIVATIONS`.
    """

    family: ClassVar[str] = "group_norm"
    channels: int
    groups: int
    dtype: str = "float32"
    eps: float = 1e-5
    activation: str = "none"
