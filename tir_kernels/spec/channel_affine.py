"""A factor and a summand for every channel, as batch normalisation with running statistics uses them:

    out[b, c, s] = act(x[b, c, s] * scale[c] + shift[c])

Computed in float32. Channels stand where torch has them: [N, C] for rows, [B, C, *spatial] for dense tensors.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .activation import ACTIVATIONS


def naive(x, scale, shift, activation="none"):
    """Oracle, in float64. x [B, C, *spatial], scale, shift [C] -> [B, C, *spatial]."""
    axes = (1, -1, *[1] * (x.ndim - 2))
    scale, shift = (vector.astype(np.float64).reshape(axes) for vector in (scale, shift))
    return ACTIVATIONS[activation](x.astype(np.float64) * scale + shift)


def of_batch_norm(mean, variance, weight=None, bias=None, eps=1e-5):
    """(scale, shift), float64 [C], of `(x - mean) / sqrt(variance + eps) * weight + bias`; all float [C]."""
    scale = 1 / np.sqrt(variance.astype(np.float64) + eps)
    scale = scale if weight is None else scale * weight.astype(np.float64)
    shift = -mean.astype(np.float64) * scale
    return scale, shift if bias is None else shift + bias.astype(np.float64)


@dataclass(frozen=True)
class ChannelAffine(Spec):
    """(x, scale, shift, out).

    x, out `dtype` [B, channels, *spatial] of `rank` >= 2 dimensions, of any size but for the channels; scale, shift float32
    [channels]; `activation`: one of `ACTIVATIONS`.
    """

    family: ClassVar[str] = "channel_affine"
    channels: int
    rank: int
    dtype: str = "float32"
    activation: str = "none"
