"""Residual addition with a gate, as adaptive layer norm uses it: `out[i, :] = x[i, :] + y[i, :] * gate[b, :]`.

b is 0, or the batch element that row i belongs to. Computed in float32.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive(x, y, gate, batch_index=None):
    """Oracle, in float64. x, y [N, C], gate [B, C], batch_index int [N] -> [N, C]."""
    rows = np.zeros(len(x), int) if batch_index is None else batch_index
    return x.astype(np.float64) + y.astype(np.float64) * gate[rows].astype(np.float64)


@dataclass(frozen=True)
class ModulatedAdd(Spec):
    """(x, y, gate, [batch_index,] out).

    x, y, out `dtype` [N, channels]; gate float32 [B, channels], of which every row takes the first, or that of batch_index
    int32 [N]: ValueError for an index outside of 0 .. B - 1.
    """

    family: ClassVar[str] = "modulated_add"
    channels: int
    dtype: str = "float32"
    has_index: bool = False
