"""How kernels read what is prepared for them once: packed weights and kernel maps. Each layout can be undone in numpy.

A layout of maps depends on the target alone and not on the layer, since one map serves many layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tvm


@dataclass(frozen=True, eq=False)
class WeightLayout:
    """A weight as a kernel reads it: `shape` and `dtype` once packed.

    `pack`: PrimFunc (weight, packed). `unpack`: packed array -> float32 array that equals the weight, its inverse in numpy; of
    integers it is the weight as rounded.

    Where input channels may be kept apart from integer products: with_apart(packed, weight [Cout, Cin], channels) -> a copy of
    `packed` that keeps these apart, and apart(packed) -> the channels that it keeps. None elsewhere.
    """

    shape: tuple[int, ...]
    dtype: str
    pack: tvm.tirx.PrimFunc
    unpack: Callable[[np.ndarray], np.ndarray]
    with_apart: Callable[[np.ndarray, np.ndarray, Sequence[int]], np.ndarray] | None = None
    apart: Callable[[np.ndarray], list[int]] | None = None


@dataclass(frozen=True)
class Array:
    """One array of a kernel map; dimensions are ints or TIR expressions."""

    name: str
    shape: tuple
    dtype: str


class MapLayout(ABC):
    """The arrays of a kernel map, in the order in which kernels take them.

    Whatever the layout, they are three int32 matrices and `rows` int64 [2], the numbers of input and output rows, which every
    use checks: so type inference, which knows no target, can tell what is a map.
    """

    NAMES: tuple[str, ...]
    DTYPES = ("int32", "int32", "int32", "int64")
    RANKS = (2, 2, 2, 1)
    DIMS: tuple[tuple[str | int, ...], ...]  # names of the dimensions of each array; equal names are equal sizes
    MOST_TAPS = 1 << 20  # of a map; its int32 count the pairs of blocks

    @abstractmethod
    def arrays(self, taps, rows) -> tuple[Array, ...]:
        """The arrays of a map of `taps` taps and `rows` output rows: ints or TIR expressions."""

    @abstractmethod
    def problem(self, *arrays: np.ndarray) -> str:
        """What keeps arrays, of this layout's dtypes and ranks, from being a map that kernels may trust; empty if nothing."""

    @abstractmethod
    def pairs(self, *arrays: np.ndarray) -> int:
        """Pairs (input row, output row) over all taps."""

    @abstractmethod
    def unpack(self, *arrays: np.ndarray) -> np.ndarray:
        """The neighbour table int32 [taps, M] of a map: the input row of every (tap, output row), or -1."""


class PairsByBlock(MapLayout):
    """The pairs (input row, output row) that meet, grouped by (block of output rows, tap).

    A block belongs to one thread and no other thread adds into its rows.

        pair_in   int32 [blocks, taps * block_rows]  input row of every pair of a block, tap by tap from the front
        pair_out  int32 [blocks, taps * block_rows]  output row within the block; entries past the last pair are undefined
        segment   int32 [blocks, taps + 1]           where each tap starts
        rows      int64 [2]                          input and output rows
    """

    NAMES = ("pair_in", "pair_out", "segment", "rows")
    DIMS = (("blocks", "slots"), ("blocks", "slots"), ("blocks", "columns"), (2,))

    @staticmethod
    def block_rows(rows):
        """Output rows of one block, for `rows` in all: an int or a TIR expression.

        About 64 blocks, so that threads share the work evenly, of 64 to 512 rows: fewer would leave many half-filled register
        tiles, more would not stay in the L2 cache. No bit of a result depends on it. A multiple of 16, so that the vectors of
        pairs that a kernel writes end within the block.
        """
        if isinstance(rows, int):
            return max(64, min(512, -(-rows // 1024) * 16))
        most, least = tvm.tirx.IntImm("int64", 512), tvm.tirx.IntImm("int64", 64)
        return tvm.tirx.max(tvm.tirx.min((rows + 1023) // 1024 * 16, most), least)

    def arrays(self, taps, rows) -> tuple[Array, ...]:
        block_rows = self.block_rows(rows)
        blocks = (rows + block_rows - 1) // block_rows
        shapes = ((blocks, taps * block_rows), (blocks, taps * block_rows), (blocks, taps + 1), (2,))
        return tuple(Array(*of_one) for of_one in zip(self.NAMES, shapes, self.DTYPES, strict=True))

    def problem(self, *arrays: np.ndarray) -> str:
        pair_in, pair_out, segment, rows = arrays
        if rows.shape != (2,) or (rows < 0).any():
            return f"rows: expected two numbers of rows, given {rows.tolist()[:4]}"
        size = self.block_rows(int(rows[1]))
        blocks, slots = -(-int(rows[1]) // size), pair_in.shape[1]
        shapes = {"pair_in": (pair_in, (blocks, slots)), "pair_out": (pair_out, (blocks, slots))}
        for name, (array, shape) in {**shapes, "segment": (segment, (blocks, max(segment.shape[1], 1)))}.items():
            if array.shape != shape:
                return f"{name}: expected {list(shape)} for {int(rows[1])} output rows, given {list(array.shape)}"
        if (segment[:, 0] != 0).any() or (np.diff(segment) < 0).any() or (segment[:, -1] > slots).any():
            return f"segment: expected numbers that ascend from 0 to at most {slots}"
        taken = np.arange(slots) < segment[:, -1:]
        in_block = np.minimum(size, int(rows[1]) - size * np.arange(blocks))[:, None]
        for name, pairs, most in (("pair_in", pair_in, rows[0]), ("pair_out", pair_out, in_block)):
            if (taken & ((pairs < 0) | (pairs >= most))).any():
                return f"{name}: expected rows that there are"
        return ""

    def identity(self, rows: int) -> tuple[np.ndarray, ...]:
        """The arrays of the map of one tap under which every row meets itself."""
        size = self.block_rows(rows)
        blocks = -(-rows // size)
        slots = np.arange(blocks * size, dtype="int32").reshape(blocks, size)
        segment = np.zeros((blocks, 2), "int32")
        segment[:, 1] = np.minimum(size, rows - size * np.arange(blocks))
        return slots, slots % np.int32(size), segment, np.array([rows, rows], "int64")

    def pairs(self, pair_in, pair_out, segment, rows) -> int:
        return int(segment[:, -1].sum(dtype=np.int64))

    def unpack(self, pair_in, pair_out, segment, rows) -> np.ndarray:
        blocks, taps = len(segment), segment.shape[1] - 1
        block_rows = pair_in.shape[1] // taps
        table = np.full((taps, int(rows[1])), -1, "int32")
        for block in range(blocks):
            for tap in range(taps):
                pairs = slice(segment[block, tap], segment[block, tap + 1])
                table[tap, block * block_rows + pair_out[block, pairs]] = pair_in[block, pairs]
        return table


TAP_GROUPS = 1  # of a map that is a neighbour table, see `NeighbourTable.tap_groups`
MASK_TAPS = 63  # the most taps of a group whose rows are ordered by what they meet


@dataclass(frozen=True)
class NeighbourTable(MapLayout):
    """The input row of every (tap, output row), with the output rows in tiles of TILE_ROWS that meet much the same taps.

        neighbours  int32 [taps, slots]              input row that a slot meets at a tap, or -1
        order       int32 [groups, slots]            output row of every slot, -1 behind the last
        tiles       int32 [groups * tiles, taps + 1] how many taps any slot of a tile meets, then these, ascending; the rest is
                                                     undefined
        rows        int64 [2]                        input and output rows

    Taps are cut into groups (see `group_taps`), each with an order of its own, in which `neighbours` of its taps are. The fewer
    taps a group has, the more alike are the rows of a tile, and the fewer taps are multiplied in vain; but every group visits
    all output rows. In an order rows ascend by the Gray code of the taps they meet, a bit a tap, and where that is equal, or a
    group has more than MASK_TAPS taps, by their number.
    """

    groups: int = TAP_GROUPS  # the most that taps are cut into

    NAMES = ("neighbours", "order", "tiles", "rows")
    DIMS = (("taps", "slots"), ("groups", "slots"), ("tiles", "columns"), (2,))
    TILE_ROWS = 128

    def tap_groups(self, taps):
        """Groups of a map of `taps` taps, an int or a TIR expression: no more than taps."""
        if isinstance(taps, int):
            return min(self.groups, taps)
        return tvm.tirx.min(taps, tvm.tirx.IntImm("int64", self.groups)) if self.groups > 1 else 1

    @staticmethod
    def group_taps(group, groups, taps):
        """(first, end) of the taps of a group: ints or TIR expressions. Tap k is in group k * groups // taps."""
        return (group * taps + groups - 1) // groups, ((group + 1) * taps + groups - 1) // groups

    def tile_count(self, rows):
        """Tiles of a group for `rows` output rows, an int or a TIR expression: at least one."""
        tiles = (rows + self.TILE_ROWS - 1) // self.TILE_ROWS
        return max(tiles, 1) if isinstance(rows, int) else tvm.tirx.max(tiles, tvm.tirx.IntImm("int64", 1))

    def arrays(self, taps, rows) -> tuple[Array, ...]:
        groups, tiles = self.tap_groups(taps), self.tile_count(rows)
        slots = tiles * self.TILE_ROWS
        shapes = ((taps, slots), (groups, slots), (groups * tiles, taps + 1), (2,))
        return tuple(Array(*of_one) for of_one in zip(self.NAMES, shapes, self.DTYPES, strict=True))

    def problem(self, *arrays: np.ndarray) -> str:
        neighbours, order, tiles, rows = arrays
        if rows.shape != (2,) or (rows < 0).any():
            return f"rows: expected two numbers of rows, given {rows.tolist()[:4]}"
        taps, count = len(neighbours), int(rows[1])
        if not taps:
            return "neighbours: expected at least one tap, given none"
        for array, expected in zip(arrays, self.arrays(taps, count), strict=True):
            if array.shape != expected.shape:
                return f"{expected.name}: expected {list(expected.shape)} for {count} output rows, given {list(array.shape)}"
        if (neighbours < -1).any() or (neighbours >= rows[0]).any() or (neighbours[:, count:] != -1).any():
            return "neighbours: expected rows that there are, or -1"
        if (np.sort(order[:, :count]) != np.arange(count)).any() or (order[:, count:] != -1).any():
            return "order: expected every output row once, and -1 behind them"
        if any(given[: len(live)].tolist() != live for given, live in zip(tiles, self._live_taps(neighbours), strict=True)):
            return "tiles: expected the number of taps that each tile meets, and these taps"
        return ""

    def _live_taps(self, neighbours: np.ndarray) -> list[list[int]]:
        """For every tile of every group, how many of its taps it meets, and these."""
        taps, slots = neighbours.shape
        met = (neighbours.reshape(taps, slots // self.TILE_ROWS, self.TILE_ROWS) >= 0).any(2)
        groups, live = self.tap_groups(taps), []
        for group in range(groups):
            first, end = self.group_taps(group, groups, taps)
            of_tiles = [(first + np.flatnonzero(tile)).tolist() for tile in met[first:end].T]
            live += [[len(of_tile), *of_tile] for of_tile in of_tiles]
        return live

    def identity(self, rows: int) -> tuple[np.ndarray, ...]:
        """The arrays of the map of one tap under which every row meets itself."""
        slots = np.arange(self.tile_count(rows) * self.TILE_ROWS, dtype="int32")
        slots[rows:] = -1
        tiles = np.zeros((self.tile_count(rows), 2), "int32")
        tiles[:, 0] = slots[:: self.TILE_ROWS] >= 0
        return slots[None], slots[None].copy(), tiles, np.array([rows, rows], "int64")

    def pairs(self, neighbours, order, tiles, rows) -> int:
        return int((neighbours >= 0).sum(dtype=np.int64))

    def unpack(self, neighbours, order, tiles, rows) -> np.ndarray:
        taps, count = len(neighbours), int(rows[1])
        table = np.full((taps, count), -1, "int32")
        for tap in range(taps):
            table[tap, order[tap * len(order) // taps, :count]] = neighbours[tap, :count]
        return table
