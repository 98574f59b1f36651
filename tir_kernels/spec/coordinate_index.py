"""From coordinates to row numbers: an index of int32 [N, 4] as (batch, x, y, z), in which other kernels look rows up.

`PlanIndex` looks at the coordinates and chooses a method, `BuildIndex` fills the index. All methods hold the same thing, so
everything built from them is equal bit for bit. An index is three arrays:

    plan   int64 [PLAN_SIZE]  method, origin and extent of the bounding box (see the constants below)
    slots  int32 [S]          rows, or -1
    keys   int64 [T]          what a hash was given; unused by a grid

Batch indices run from 0 to 4095 and coordinates from -32768 to 32767.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec

BATCH_LIMIT = 4096
COORDINATE_LIMIT = 32768
DEFAULT_LOW = (0, -COORDINATE_LIMIT, -COORDINATE_LIMIT, -COORDINATE_LIMIT)
DEFAULT_HIGH = (BATCH_LIMIT - 1, COORDINATE_LIMIT - 1, COORDINATE_LIMIT - 1, COORDINATE_LIMIT - 1)

METHODS = ("auto", "grid", "hash")
GRID, HASH = 0, 1

PLAN_SIZE = 16
PLAN_METHOD = 0
PLAN_ORIGIN = 1  # 4 entries: lowest batch, x, y, z
PLAN_EXTENT = 5  # 4 entries: cells along each, with PAD more behind the box along x, y, z
PLAN_ROWS = 9  # rows of the coordinates
PLAN_PAD = 10  # 3 entries: empty cells along x, y, z
PLAN_MARGIN = 13  # empty cells before the first


def naive(coords, queries):
    """Oracle. coords [N, 4], queries [M, 4] -> int32 [M]: the row of `coords` that equals each query, or -1."""
    rows = {tuple(coordinate): row for row, coordinate in enumerate(np.asarray(coords).tolist())}
    return np.array([rows.get(tuple(query), -1) for query in np.asarray(queries).tolist()], "int32").reshape(-1)


@dataclass(frozen=True)
class PlanIndex(Spec):
    """(coords int32 [N, 4], plan int64 [PLAN_SIZE], size int64 [2]): checks the range and chooses the method.

    `method`: one of `METHODS`; `low`, `high`: the range of batch, x, y, z; `argument`: the name of the coordinates in messages.
    size = (S, T). Raises ValueError for the first row out of range. One index serves all maps and look-ups of the coordinates:
    nothing in it depends on their geometry.
    """

    family: ClassVar[str] = "plan_index"
    method: str = "auto"
    low: tuple[int, int, int, int] = DEFAULT_LOW
    high: tuple[int, int, int, int] = DEFAULT_HIGH
    argument: str = "coords"


@dataclass(frozen=True)
class BuildIndex(Spec):
    """(coords int32 [N, 4], plan, slots, keys): fills the index; ValueError for the first row that repeats another.

    `argument`: the name of the coordinates in messages.
    """

    family: ClassVar[str] = "build_index"
    argument: str = "coords"


@dataclass(frozen=True)
class Lookup(Spec):
    """(queries int32 [M, 4], plan, slots, keys, rows int32 [M]): the row of each query, or -1."""

    family: ClassVar[str] = "lookup"
