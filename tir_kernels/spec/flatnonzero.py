"""The rows that a mask keeps: `index[j]` is the row of the j-th entry that is not zero.

Two kernels, with the number of these entries between them. Rows that stay are then `x[index]`, see `gather_rows`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec

DTYPES = ("bool", "int8", "uint8", "int32")
CHUNK = 4096  # entries that one task counts


def naive(mask):
    """Oracle. mask [N] -> int32 [M], ascending."""
    return np.flatnonzero(mask).astype("int32")


@dataclass(frozen=True)
class CountNonzero(Spec):
    """(mask `dtype` [N], before int64 [ceil(N / CHUNK)], count int64 [1]): entries not zero, in all and before a chunk."""

    family: ClassVar[str] = "count_nonzero"
    dtype: str = "bool"


@dataclass(frozen=True)
class FillNonzero(Spec):
    """(mask `dtype` [N], before int64 [ceil(N / CHUNK)], index int32 [M]), with what `CountNonzero` found."""

    family: ClassVar[str] = "fill_nonzero"
    dtype: str = "bool"
