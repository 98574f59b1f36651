"""Voxels of points, also of those that were downsampled by a stride:

    coords[i, :] = (batch[i], floor(floor((points[i, :] - origin) / voxel_size) / stride))

Difference and quotient are rounded to float32 each, and nothing is multiplied by a reciprocal: the voxels are those of numpy in
float32, bit for bit. The division by the stride is one of integers, as in `unique`, so that both lead to the same voxels.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def positions(points, voxel_size, origin=(0, 0, 0)):
    """points float32 [P, 3] -> float32 [P, 3], in units of voxels, rounded as the kernels round."""
    return (points - np.asarray(origin, "float32")) / np.asarray(voxel_size, "float32")


def naive(points, voxel_size, batch_index=None, origin=(0, 0, 0), stride=(1, 1, 1)):
    """Oracle. points float32 [P, 3], batch_index int [P], the others three numbers -> int32 [P, 4]."""
    batch = np.zeros(len(points), int) if batch_index is None else batch_index
    cells = np.floor(positions(points, voxel_size, origin)).astype(int) // np.asarray(stride)
    return np.concatenate([np.asarray(batch)[:, None], cells], 1).astype("int32")


@dataclass(frozen=True)
class Quantize(Spec):
    """(points float32 [P, 3], voxel_size float32 [3], [batch_index int32 [P],] origin float32 [3], coords int32 [P, 4]).

    The batch index is 0 where there is none. Raises ValueError for a voxel size that is not above 0 and finite, an origin that
    is not finite, and the first point whose batch index or voxel (at stride 1) is out of range or that is not finite.
    """

    family: ClassVar[str] = "quantize"
    stride: tuple[int, int, int] = (1, 1, 1)
    has_index: bool = False
