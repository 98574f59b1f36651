"""Group normalisation of dense tensors in torch's layout, channels before the spatial axes.

    out[b, c, s] = act((x[b, c, s] - mean[b, g]) / sqrt(variance[b, g] + eps) * weight[c] + bias[c])

where channel c belongs to group g, and mean and variance are over all sites and the channels of the group.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .activation import ACTIVATIONS


def naive(x, weight, bias, groups: int, eps=1e-5, activation="none"):
    """Oracle, in float64. x [B, C, *spatial], weight, bias [C] -> [B, C, *spatial]."""
    batch, channels, *spatial = x.shape
    if not x.size:
        return np.zeros(x.shape)  # no group has a mean
    parts = x.astype(np.float64).reshape(batch, groups, channels // groups, *spatial)
    axes = tuple(range(2, parts.ndim))
    normal = (parts - parts.mean(axes, keepdims=True)) / np.sqrt(parts.var(axes, keepdims=True) + eps)
    weight, bias = (vector.reshape(-1, *(1 for _ in spatial)) for vector in (weight, bias))
    return ACTIVATIONS[activation](normal.reshape(x.shape) * weight + bias)


@dataclass(frozen=True)
class DenseGroupNorm(Spec):
    """(x, weight, bias, out).

    x, out `dtype` [B, channels, *spatial] of `rank` >= 2 dimensions, of any size but for the channels; weight, bias float32
    [channels]; `activation`: one of `ACTIVATIONS`.
    """

    family: ClassVar[str] = "dense_group_norm"
    channels: int
    groups: int
    rank: int
    dtype: str = "float32"
    eps: float = 1e-5
    activation: str = "none"
