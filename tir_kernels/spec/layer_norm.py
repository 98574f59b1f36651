"""Layer normalisation of rows, with the modulation of adaptive layer norm.

    out[i, :] = act(((x[i, :] - mean) / sqrt(variance + eps) * weight + bias) * (1 + scale[b, :]) + shift[b, :])

where b is 0, or the batch element that row i belongs to. Mean and variance are those of row i, in float32.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .activation import ACTIVATIONS


def naive(x, weight=None, bias=None, scale=None, shift=None, batch_index=None, eps=1e-6, activation="none"):
    """Oracle, in float64. x [N, C], weight, bias [C], scale, shift [B, C], batch_index int [N] -> [N, C]."""
    x = x.astype(np.float64)
    out = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps)
    out = out * (1 if weight is None else weight) + (0 if bias is None else bias)
    rows = np.zeros(len(x), int) if batch_index is None else batch_index
    out = out * (1 if scale is None else 1 + scale[rows]) + (0 if shift is None else shift[rows])
    return ACTIVATIONS[activation](out)


@dataclass(frozen=True)
class LayerNorm(Spec):
    """(x, weight, bias, scale, shift, [batch_index,] out).

    x, out `dtype` [N, channels]; weight, bias float32 [channels]; scale, shift float32 [B, channels], of which every row takes
    the first, or that of batch_index int32 [N]: ValueError for an index outside of 0 .. B - 1; `activation`: one of
    `ACTIVATIONS`.
    """

    family: ClassVar[str] = "layer_norm"
    channels: int
    dtype: str = "float32"
    has_index: bool = False
    eps: float = 1e-6
    activation: str = "none"
