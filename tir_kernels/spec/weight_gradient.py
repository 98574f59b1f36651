"""The gradient of a sparse convolution's weight.

    out[co, k, ci] = sum over pairs (i, o) of tap k:  gradient[o, co] * x[i, ci]

where `gradient` is that of the result. With groups, `ci` counts the input channels of the group that `co` belongs to.

Sums are float32: of each block of output rows apart, then over the blocks in order.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .sparse_conv import Grouped


def naive(x, gradient, table, groups=1):
    """Oracle, in float64. x [N, Cin], gradient [M, Cout], table int32 [K, M] (-1: no input) -> [Cout, K, Cin / groups]."""
    x, gradient = x.astype(np.float64), gradient.astype(np.float64)
    out = np.zeros((gradient.shape[1], len(table), x.shape[1] // groups))
    for tap, rows in enumerate(table):
        hit = rows >= 0
        of_groups = zip(np.split(gradient[hit], groups, 1), np.split(x[rows[hit]], groups, 1), strict=True)
        out[:, tap] = np.concatenate([own.T @ columns for own, columns in of_groups])
    return out


@dataclass(frozen=True)
class SparseConvWeightGradient(Grouped, Spec):
    """(x, gradient, the map's arrays, out), for any number of rows and taps.

    x `dtype` [N, cin]; gradient `dtype` [M, cout]; out float32 [cout, kx, ky, kz, cin / groups]. Raises ValueError when the map
    does not fit the rows or the taps.
    """

    family: ClassVar[str] = "sparse_conv_weight_gradient"
    cin: int
    cout: int
    dtype: str = "float32"
    groups: int = 1
