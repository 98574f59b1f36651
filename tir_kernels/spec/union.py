"""The union of coordinate sets that lie one after the other, and where the rows of each set are in it.

    coords[inverse[i]] == all_coords[i],  coords ascending,  rows[p, inverse[offsets[p] + j]] == j, and -1 elsewhere

The union is that of `unique`; one more kernel finds the rows of the sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec, unique


def naive(sets: Sequence):
    """Oracle. P sets of coordinates int32 [N_p, 4] -> (coords int32 [M, 4], inverse int32 [N], rows int32 [P, M])."""
    coords, inverse = unique.naive(np.concatenate(sets))
    rows, first = np.full((len(sets), len(coords)), -1, "int32"), 0
    for own, one in zip(rows, sets, strict=True):
        own[inverse[first : first + len(one)]] = np.arange(len(one))
        first += len(one)
    return coords, inverse, rows


@dataclass(frozen=True)
class SetRows(Spec):
    """(unchecked int32 [N], offsets int32 [P + 1], inverse int32 [N], rows int32 [P, M]): the rows of P sets in their union.

    `unchecked`: the row of the union of each row of a set, which `inverse` repeats. Raises ValueError for the first row of a
    set that repeats another of it, and for offsets that do not ascend from 0 to N.
    """

    family: ClassVar[str] = "set_rows"
