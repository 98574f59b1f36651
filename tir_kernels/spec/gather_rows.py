"""Row selection: `out[i, :] = x[index[i], :]`, and zeros where the index is -1. Nearest upsampling is this.

out = x[inverse], where `inverse` is the row of the coarse voxel that each fine voxel lies in
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive(x, index):
    """Oracle, in float64 (integers stay what they are). x [N, C], index int [M] -> [M, C]."""
    wide = x if x.dtype.kind in "iu" else x.astype(np.float64)
    out = np.zeros((len(index), x.shape[1]), wide.dtype)
    out[index >= 0] = wide[index[index >= 0]]
    return out


@dataclass(frozen=True)
class GatherRows(Spec):
    """(x `dtype` [N, channels], index int32 [M], out `dtype` [M, channels]); ValueError for an index not in -1 .. N - 1."""

    family: ClassVar[str] = "gather_rows"
    channels: int
    dtype: str = "float32"
