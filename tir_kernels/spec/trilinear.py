"""Voxels around points, and their weights in trilinear interpolation, as spvcnn has it (Tang et al., arXiv:2007.16100).

The value of a voxel stands at its integer coordinates, the corner of the cell. A point has the position

    p = ((point - origin) / voxel_size) / stride

in units of voxels and lies in voxel b, which is floor(p), see `quantize`. Around it stand the eight voxels b + d, with d from
(0, 0, 0) to (1, 1, 1), the last axis fastest:

    index[i, d] = the row of voxel (batch, b + d), or -1
    weight[i, d] = product over axes a of (p[a] - b[a] if d[a] else b[a] + 1 - p[a]), 0 where the index is -1

With `normalize` the weights are divided by their sum + 1e-8: a point without voxels has weights of 0, and with few of them
takes the mean of those there are. All is float32, in this order of operations.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec, coordinate_index, quantize

CORNERS = 8
SUM_BIAS = 1e-8  # added to the sum of weights that they are divided by


def naive(coords, points, voxel_size, batch_index=None, origin=(0, 0, 0), stride=(1, 1, 1), normalize: bool = True):
    """Oracle: weights in float64, from positions in float32.

    coords int32 [N, 4], points float32 [P, 3], batch_index int [P] -> (index int32 [P, 8], weight float64 [P, 8]).
    """
    position = (quantize.positions(points, voxel_size, origin) / np.asarray(stride, "float32")).astype(np.float64)
    base = quantize.naive(points, voxel_size, batch_index, origin, stride)
    index = np.zeros((len(points), CORNERS), "int32")
    weight = np.zeros((len(points), CORNERS))
    for corner, offset in enumerate(np.ndindex(2, 2, 2)):
        voxel = base + np.array([0, *offset])
        index[:, corner] = coordinate_index.naive(coords, voxel)
        weight[:, corner] = np.prod(1 - np.abs(position - voxel[:, 1:]), 1) * (index[:, corner] >= 0)
    return index, weight / (weight.sum(1, keepdims=True) + SUM_BIAS) if normalize else weight


@dataclass(frozen=True)
class Trilinear(Spec):
    """(points float32 [P, 3], voxel_size float32 [3], [batch_index int32 [P],] origin float32 [3], plan, slots, keys,
    index int32 [P, 8], weight float32 [P, 8]), with an index of the voxels as in `coordinate_index`.

    Raises ValueError as `Quantize`.
    """

    family: ClassVar[str] = "trilinear"
    stride: tuple[int, int, int] = (1, 1, 1)
    normalize: bool = True
    has_index: bool = False
