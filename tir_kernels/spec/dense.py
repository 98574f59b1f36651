"""Between sparse rows and a dense grid, in the layout of spconv's `.dense()` or with channels last.

to_dense:    dense[b, c, x, y, z] = row of features at (b, x, y, z), or 0
from_dense:  out[i, c] = dense[b, c, x, y, z] at the coordinates (b, x, y, z) of row i
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive_to_dense(x, coords, batch: int, shape: tuple[int, int, int], channels_last: bool = False):
    """Oracle, in float64. x [N, C], coords int [N, 4] -> [B, C, X, Y, Z], or [B, X, Y, Z, C]."""
    dense = np.zeros((batch, *shape, x.shape[1]))
    dense[tuple(coords.T)] = x
    return dense if channels_last else np.moveaxis(dense, -1, 1)


def naive_from_dense(dense, coords, channels_last: bool = False):
    """Oracle, in float64. dense [B, C, X, Y, Z], or [B, X, Y, Z, C], coords int [N, 4] -> [N, C]."""
    last = dense if channels_last else np.moveaxis(dense, 1, -1)
    return last[tuple(coords.T)].astype(np.float64)


def grid_shape(batch, channels, shape: tuple, channels_last: bool) -> tuple:
    """The shape of a dense grid, of ints or TIR expressions."""
    return (batch, *shape, channels) if channels_last else (batch, channels, *shape)


@dataclass(frozen=True)
class ToDense(Spec):
    """(x `dtype` [N, channels], coords int32 [N, 4], out), out of `grid_shape`, for any batch and extents.

    Raises ValueError for the first row of coords outside of the grid, or that repeats another.
    """

    family: ClassVar[str] = "to_dense"
    channels: int
    dtype: str = "float32"
    channels_last: bool = False


@dataclass(frozen=True)
class FromDense(Spec):
    """(dense, coords int32 [N, 4], out `dtype` [N, C]), dense of `grid_shape`, for any batch, extents and channels.

    Raises ValueError for the first row of coords outside of the grid.
    """

    family: ClassVar[str] = "from_dense"
    dtype: str = "float32"
    channels_last: bool = False
