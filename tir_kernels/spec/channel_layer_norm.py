"""Layer normalisation over the channels of dense tensors in torch's layout, channels before the spatial axes.

    out[b, :, s] = act((x[b, :, s] - mean) / sqrt(variance + eps) * weight + bias)

where mean and variance are those of the C channels at site s, in float32.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .layer_norm import naive as naive_rows


def naive(x, weight, bias, eps=1e-5, activation="none"):
    """Oracle, in float64. x [B, C, *spatial], weight, bias [C] -> [B, C, *spatial]."""
    last = np.moveaxis(x, 1, -1)
    out = naive_rows(last.reshape(-1, x.shape[1]), weight, bias, eps=eps, activation=activation)
    return np.moveaxis(out.reshape(last.shape), -1, 1)


@dataclass(frozen=True)
class ChannelLayerNorm(Spec):
    """(x, weight, bias, out).

    x, out `dtype` [B, channels, *spatial] of `rank` >= 2 dimensions, of any size but for the channels; weight, bias float32
    [channels]; `activation`: one of `ACTIVATIONS`.
    """

    family: ClassVar[str] = "channel_layer_norm"
    channels: int
    rank: int
    dtype: str = "float32"
    eps: float = 1e-5
    activation: str = "none"
