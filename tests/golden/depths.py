"""How many rounded additions lie behind what a network computes, layer by layer: see `tests.tolerance`.

Every function returns the additions of one part; those of parts that feed each other add up.
"""

from collections.abc import Sequence

import numpy as np


def neighbours(coords: np.ndarray) -> int:
    """The most active voxels in a 3^3 window around any voxel of coords int [N, 4]: taps of the longest sum."""
    if len(coords) == 0:
        return 1
    cells = coords.astype(np.int64) - coords.min(0)
    extent = cells.max(0) + 3
    keys = np.ravel_multi_index((cells + np.array([0, 1, 1, 1])).T, extent)
    steps = [np.ravel_multi_index((0, x, y, z), extent) for x in range(3) for y in range(3) for z in range(3)]
    centre = np.ravel_multi_index((0, 1, 1, 1), extent)
    return int(sum(np.isin(keys + step - centre, keys) for step in steps).max())


def rows_of_element(coords: np.ndarray) -> int:
    """The most voxels of one batch element of coords int [N, 4]."""
    return int(np.bincount(coords[:, 0]).max(initial=1))


def linear(channels: int) -> float:
    return channels + 1


def conv(channels: int, taps: int) -> float:
    return channels * taps + 1


def layer_norm(channels: int) -> float:
    """A mean, then a mean of squares."""
    return 2 * channels


def attention(head_dim: int, keys: int) -> float:
    """Logits, then a weighted sum. The error of a logit is that of its own terms, which reach sqrt(head_dim) where
    queries and keys are normalised, and it changes a weight by as much."""
    return head_dim * head_dim + keys


def resblock(channels: int, out_channels: int, emb_channels: int, taps: int) -> float:
    """Both norms and convolutions, the modulation and the skip."""
    norms = layer_norm(channels) + layer_norm(out_channels)
    return norms + conv(channels, taps) + conv(out_channels, taps) + linear(emb_channels) + linear(channels)


def downsample() -> float:
    """A mean of eight, and one."""
    return 9.0


def resize(
    old: tuple[int, int], new: tuple[int, int], antialias: bool = False, steepness: Sequence[float] = (1.0, 1.0)
) -> float:
    """Bilinear interpolation from `old` to `new` pixels along two axes: the terms of a mean, and the square of a position.

    A library that computes positions in float32 rounds one of `old` pixels at its own size, which moves a value by as much as
    values change from pixel to pixel, `steepness` times their size. Antialiasing widens the filter to the `new` pixels.
    """
    total = 0.0
    for before, after, steep in zip(old, new, steepness, strict=True):
        if before != after:
            reach, position = (max(1, -(-before // after)), min(before, after)) if antialias else (1, before)
            total += 2 * reach + (position * steep) ** 2
    return total
