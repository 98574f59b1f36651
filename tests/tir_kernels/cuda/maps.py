"""Kernel maps for tests of kernels that read them, made without a kernel."""

import numpy as np

from tir_kernels.layout import NeighbourTable


def random_table(rng: np.random.Generator, taps: int, rows_in: int, rows: int) -> np.ndarray:
    """int32 [taps, rows]: input rows, or -1. Every second tap meets no row of the first half, so that tiles skip taps."""
    table = rng.integers(0, max(rows_in, 1), (taps, rows)).astype("int32")
    table[rng.random(table.shape) < 0.6] = -1
    table[::2, : rows // 2] = -1
    return table if rows_in else np.full_like(table, -1)


def neighbour_table(table: np.ndarray, rows_in: int, groups: int, seed: int = 0) -> list[np.ndarray]:
    """The arrays of a map with a table [taps, M], whose groups have any order."""
    taps, rows = table.shape
    layout = NeighbourTable(groups)
    rng = np.random.default_rng(seed)
    neighbours, order, tiles, rows_array = (np.full(a.shape, -1, a.dtype) for a in layout.arrays(taps, rows))
    per_group = len(tiles) // groups
    for group in range(groups):
        order[group, :rows] = rng.permutation(rows)
        first, end = layout.group_taps(group, groups, taps)
        for tap in range(first, end):
            neighbours[tap, :rows] = table[tap, order[group, :rows]]
        for tile in range(per_group):
            block = neighbours[first:end, tile * layout.TILE_ROWS : (tile + 1) * layout.TILE_ROWS]
            live = first + np.flatnonzero((block >= 0).any(1))
            tiles[group * per_group + tile, : len(live) + 1] = [len(live), *live]
    rows_array[:] = rows_in, rows
    return [neighbours, order, tiles, rows_array]
