"""How many rounded additions lie behind what a network computes, layer by layer: see `tests.tolerance`.

Every function returns the additions of one part; those of parts that feed each other add up.
"""

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
