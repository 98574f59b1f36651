"""Unique coordinates with inverse, optionally after dividing by a factor per axis: `unique` and `downsample`.

    coords[inverse[i]] == (batch_i, floor(x_i / fx), floor(y_i / fy), floor(z_i / fz)),  coords ascending

Output rows ascend in (batch, x, y, z), as `torch.unique(dim=0)` and upstream's downsampling order them, whatever the method.
Three kernels, with the number of output rows between them.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .coordinate_index import DEFAULT_HIGH, DEFAULT_LOW

METHODS = ("auto", "grid", "sort")


def naive(coords, factor=(1, 1, 1)):
    """Oracle. coords int32 [N, 4] -> (unique int32 [M, 4] ascending, inverse int32 [N])."""
    divided = np.asarray(coords) // np.array([1, *factor])
    unique, inverse = np.unique(divided, axis=0, return_inverse=True)
    return unique.astype("int32").reshape(-1, 4), inverse.reshape(-1).astype("int32")


@dataclass(frozen=True)
class PlanUnique(Spec):
    """(coords int32 [N, 4], plan int64 [PLAN_SIZE], size int64 [2]): box, method, scratch sizes (S, T).

    `method`: one of `METHODS`. Raises ValueError for the first row out of range.
    """

    family: ClassVar[str] = "plan_unique"
    factor: tuple[int, int, int]
    method: str = "auto"
    low: tuple[int, int, int, int] = DEFAULT_LOW
    high: tuple[int, int, int, int] = DEFAULT_HIGH


@dataclass(frozen=True)
class RankUnique(Spec):
    """(coords, plan, cells int32 [S], order int64 [T], inverse int32 [N], count int64 [1]): cells and order are scratch."""

    family: ClassVar[str] = "rank_unique"
    factor: tuple[int, int, int]


@dataclass(frozen=True)
class FillUnique(Spec):
    """(coords int32 [N, 4], inverse int32 [N], out int32 [M, 4])."""

    family: ClassVar[str] = "fill_unique"
    factor: tuple[int, int, int]
