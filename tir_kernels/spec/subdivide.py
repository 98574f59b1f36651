"""Subdivision of voxels: every row becomes fx * fy * fz children, `coords * factor + offset`.

Children of one voxel follow each other with the offset along z fastest, so the children of row i are the rows from
i * children on; features follow by repeating rows.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive(coords, factor=(2, 2, 2)):
    """Oracle. coords int32 [N, 4] -> int32 [N * fx * fy * fz, 4]."""
    offsets = np.array([(0, *offset) for offset in itertools.product(*(range(f) for f in factor))])
    children = np.asarray(coords)[:, None] * np.array([1, *factor]) + offsets
    return children.reshape(-1, 4).astype("int32")


@dataclass(frozen=True)
class Subdivide(Spec):
    """(coords int32 [N, 4], out int32 [N * fx * fy * fz, 4])."""

    family: ClassVar[str] = "subdivide"
    factor: tuple[int, int, int]
