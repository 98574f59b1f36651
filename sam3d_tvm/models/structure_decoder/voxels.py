"""From the logits of the structure decoder to voxels: threshold, pruning, and a coarser grid beyond the voxel limit.

Coordinates are int32 [N, 4] of (batch, x, y, z), within the range of `sparse_ops`: batch 0 to 4095, x, y, z -32768 to 32767.
Arguments may be numpy, torch or TVM arrays; results are numpy arrays. Batch elements never touch each other: each comes out as
if it were given alone. For a single one everything is as in SAM-3D-Objects, which does not look at the batch column.
"""

from numbers import Real

import numpy as np

from sam3d_tvm.checks import check_size
from sparse_ops.eager.arrays import as_kind, as_tensor
from tir_kernels.spec.coordinate_index import DEFAULT_HIGH, DEFAULT_LOW

MAX_VOXELS = 42000  # of one object, what the second stage was made for


def occupied_coords(logits, threshold: float = 0.0) -> np.ndarray:
    """The voxels whose logit is above `threshold`: int32 [N, 4], ascending by batch, x, y, z.

    logits float32 [B, 1, X, Y, Z]. Raises ValueError for another shape or dtype, and for NaN among the logits or as threshold.
    """
    if not isinstance(threshold, Real) or np.isnan(threshold):
        raise ValueError(f"threshold: expected a number, given {threshold!r}")
    grid = as_kind(as_tensor(logits, "logits", ("float32",), (None, 1, None, None, None)), "numpy")
    if undefined := np.count_nonzero(np.isnan(grid)):
        raise ValueError(f"logits: expected numbers, given {undefined} NaN of {grid.size} values")
    return np.argwhere(grid[:, 0] > threshold).astype(np.int32, order="C")


def prune(coords, distance: int = 1) -> np.ndarray:
    """The voxels that are not buried: those with a gap among the (2 distance + 1)^3 voxels around them, in their order.

    coords int32 [N, 4] -> int32 [M, 4]. Raises ValueError for other coordinates or a distance below 1.
    """
    coords = _checked(coords)
    check_size("distance", distance, 1)
    if len(coords) == 0:
        return coords
    low, extent = _box(coords)
    extent[1:] += 1  # a gap behind the last voxel of every axis: a step never leads into the next line or batch element
    keys = np.ravel_multi_index((coords - low).T, extent)
    full = np.unique(keys)
    # A box is full if all runs along z are, and of their middles all runs along y, and of those all along x. And a run of
    # 2 distance + 1 is full if those that are one shorter at both ends are full around its middle and both neighbours.
    for stride in (1, extent[3], extent[2] * extent[3]):
        for _ in range(min(distance, len(full))):
            full = full[np.isin(full - stride, full) & np.isin(full + stride, full)]
    return coords[~np.isin(keys, full)]


def downsample(
    coords, max_voxels: int = MAX_VOXELS, factor: int = 2, batch_size: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Batch elements of more than `max_voxels` voxels on a grid coarser by `factor`; the others unchanged.

    coords int32 [N, 4] -> (int32 [M, 4], factors int64 [B]): how much larger a voxel of each batch element is now, 1 where
    nothing changed, by which the scale of its pose grows. The extent of the voxels shrinks around its middle, coordinates are
    rounded half to even, and of voxels that fall together one is left; rows ascend. If even so more than `max_voxels` are left,
    as many are chosen at random, the same for the same `seed`. `batch_size`, B, defaults to what the coordinates need, at least
    1. Unless all are unchanged, the elements come in ascending order.

    Raises ValueError for other coordinates or sizes.
    """
    coords = _checked(coords)
    check_size("max_voxels", max_voxels, 1)
    check_size("factor", factor, 2)
    check_size("seed", seed, 0)
    least = int(coords[:, 0].max(initial=-1)) + 1
    batch_size = max(1, least) if batch_size is None else batch_size
    check_size("batch_size", batch_size, least)
    crowded = np.bincount(coords[:, 0], minlength=batch_size) > max_voxels
    factors = np.where(crowded, factor, 1)  # int64 [B]
    if not crowded.any():
        return coords, factors
    elements = []
    for batch in np.unique(coords[:, 0]):
        element = coords[coords[:, 0] == batch]
        if crowded[batch]:
            element = _coarser(element, factor)
            if len(element) > max_voxels:
                chosen = np.random.default_rng(seed).choice(len(element), max_voxels, replace=False)
                element = element[np.sort(chosen)]
        elements.append(element)
    return np.concatenate(elements), factors


def _coarser(coords: np.ndarray, factor: int) -> np.ndarray:
    """One batch element, at least one voxel, on a grid whose extent is smaller by `factor`, ascending."""
    low, high = coords.min(0), coords.max(0)
    extent = high - low + 1.0
    # Along an axis of extent 1, such as that of the batch, the only place stays as it is.
    first = low + (extent - extent / factor) / 2
    last = first + extent / factor - 1
    # The ends may lie halfway between two voxels; 0 and 1 times the extent are exact, so they always round the same way.
    moved = np.round(first + (coords - low) / np.maximum(high - low, 1) * (last - first))
    moved = np.where(low == high, low, np.clip(moved, np.trunc(first), np.trunc(last))).astype(np.int64)
    low, extent = _box(moved)
    keys = np.unique(np.ravel_multi_index((moved - low).T, extent))
    return (np.stack(np.unravel_index(keys, extent), 1) + low).astype(np.int32)


def _box(coords: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First corner and extent, int64 [4] each, of the box around at least one voxel."""
    low = coords.min(0).astype(np.int64)
    return low, coords.max(0) - low + 1


def _checked(coords) -> np.ndarray:
    """Coordinates as a numpy array; ValueError for another shape or dtype, and for the first row out of range."""
    coords = as_kind(as_tensor(coords, "coords", ("int32",), (None, 4)), "numpy")
    if (beyond := (coords < DEFAULT_LOW) | (coords > DEFAULT_HIGH)).any():
        row, column = np.argwhere(beyond)[0]
        limits = f"{('batch', 'x', 'y', 'z')[column]} from {DEFAULT_LOW[column]} to {DEFAULT_HIGH[column]}"
        raise ValueError(f"coords: expected {limits}, given {coords[row, column]} in row {row}")
    return coords
