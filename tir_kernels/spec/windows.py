"""Windows of voxels, for attention within them (Swin3D, Yang et al., arXiv:2304.06906; TRELLIS, arXiv:2412.01506).

    window of a row = (batch, floor((x + sx) / wx), floor((y + sy) / wy), floor((z + sz) / wz))
    order[offsets[i] : offsets[i + 1]] = the rows of the i-th window, ascending;  windows ascend

The windows of all rows are coordinates again: `unique` numbers them in order, and `GroupRows` sorts the rows by that number.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive(coords, window=(8, 8, 8), shift=(0, 0, 0)):
    """Oracle. coords int32 [N, 4] -> (order int32 [N], offsets int32 [W + 1])."""
    windows = (np.asarray(coords) + np.array([0, *shift])) // np.array([1, *window])
    _, group, sizes = np.unique(windows, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    return order.astype("int32"), np.cumsum([0, *sizes]).astype("int32")


@dataclass(frozen=True)
class WindowCoords(Spec):
    """(coords int32 [N, 4], shift along x, y, z, each an int64, windows int32 [N, 4]); ValueError for a row out of range.

    A shift counts modulo the window, so that windows keep within the range of coordinates.
    """

    family: ClassVar[str] = "window_coords"
    window: tuple[int, int, int]


@dataclass(frozen=True)
class GroupRows(Spec):
    """(group int32 [N], order int32 [N], offsets int32 [G + 1]): rows by group, ascending in each. Groups from 0 to G - 1."""

    family: ClassVar[str] = "group_rows"
