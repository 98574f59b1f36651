"""Occupied voxels: reading them from a file, and the one that comes with the package."""

import os
from importlib import resources
from pathlib import Path

import numpy as np

from sam3d_tvm.reading import read_npz


def load_occupancy(path: str | os.PathLike) -> np.ndarray:
    """Reads `coords`, integers `[N, 3]`, of a .npz file as int32 `[N, 4]` of (batch, x, y, z), batch 0.

    Raises ValueError when the file cannot be read, or `coords` is missing, of another kind or shape, or beyond int32.
    """
    try:
        coords = read_npz(Path(path), Path(path).name, ["coords"])["coords"]
    except ValueError as error:
        raise ValueError(f"path: expected a .npz file that holds 'coords', given {str(path)!r}: {error}") from error
    if coords.dtype.kind not in "iu" or coords.ndim != 2 or coords.shape[1] != 3:
        raise ValueError(f"coords: expected integers [N, 3], given {coords.dtype} {list(coords.shape)} in {str(path)!r}")
    limits = np.iinfo(np.int32)
    if coords.size and not (limits.min <= coords.min() and coords.max() <= limits.max):
        raise ValueError(f"coords: expected values within int32, given {coords.min()} to {coords.max()} in {str(path)!r}")
    return np.pad(coords.astype(np.int32), ((0, 0), (1, 0)))


def demo_occupancy() -> np.ndarray:
    """A nut of 19,072 surface voxels on a 64^3 grid, int32 `[19072, 4]`."""
    with resources.as_file(resources.files("sam3d_tvm") / "data" / "nut_64.npz") as path:
        return load_occupancy(Path(path))
