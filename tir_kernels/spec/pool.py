"""Pooling through a kernel map: sum, mean or maximum of the input rows that meet an output row.

    out[o, :] = reduction over taps k, pairs (i, o) of k, of x[i, :]

Sums are float32, in the order of the taps.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec

MODES = ("sum", "mean", "max")
SEGMENT_MODES = (*MODES, "first")  # where rows that meet have an order


@dataclass(frozen=True)
class Reduction:
    """How the rows that meet in one output row become one; a row that meets none is 0.

    `mode`: one of `SEGMENT_MODES`. `count_bias` is added to the number of rows that a mean divides by. TRELLIS-like models take
    1: they average into a zero buffer that is itself counted. `max_from_zero`: a maximum starts from 0, as in spconv's CPU
    pooling. NaN and infinities propagate as in numpy, in any order of rows: a maximum over NaN is NaN, also from 0.
    """

    mode: str
    count_bias: int = 0
    max_from_zero: bool = False

    def naive(self, rows):
        """Oracle, in float64: rows [P, C] -> [C]."""
        if len(rows) == 0:
            return np.zeros(rows.shape[1])
        rows = rows.astype(np.float64)
        if self.mode == "first":
            return rows[0]
        if self.mode == "max":
            return np.maximum(rows.max(0), 0) if self.max_from_zero else rows.max(0)
        return rows.sum(0) / (len(rows) + self.count_bias if self.mode == "mean" else 1)


def naive(x, table, reduction: Reduction):
    """Oracle, in float64. x [N, C], table int32 [taps, M] (-1: no input) -> [M, C]."""
    rows = [reduction.naive(x[column[column >= 0]]) for column in table.T]
    return np.stack(rows) if rows else np.zeros((0, x.shape[1]))


@dataclass(frozen=True)
class Pool(Spec):
    """(x `dtype` [N, channels], the map's arrays, out `dtype` [M, channels]).

    Raises ValueError when the map does not fit N and M.
    """

    family: ClassVar[str] = "pool"
    channels: int
    reduction: Reduction
    dtype: str = "float32"
