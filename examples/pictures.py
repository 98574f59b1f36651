"""Points as pictures, in numpy and Pillow."""

from pathlib import Path

import numpy as np
from PIL import Image

GROUND = np.array([18, 18, 24], "uint8")
RAMP = np.array([[48, 18, 90], [30, 90, 160], [40, 170, 130], [220, 210, 60], [255, 250, 230]], "float32")  # dark to light


def ramp(values: np.ndarray) -> np.ndarray:
    """A colour uint8 [..., 3] for each value, the smallest dark and the largest light."""
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    place = (values - low) / max(high - low, 1e-30) * (len(RAMP) - 1)
    return np.stack([np.interp(place, range(len(RAMP)), channel) for channel in RAMP.T], -1).astype("uint8")


def draw(places: np.ndarray, colours: np.ndarray, size: tuple[int, int], dot: int = 1) -> np.ndarray:
    """A picture uint8 [H, W, 3] with squares of `dot` pixels at places [N, 2] (column, row); later ones lie on top."""
    width, height = size
    picture = np.broadcast_to(GROUND, (height, width, 3)).copy()
    square = np.stack(np.meshgrid(range(dot), range(dot)), -1).reshape(-1, 2)
    x, y = (np.floor(places).astype(int)[:, None] + square).reshape(-1, 2).T  # one point after the other
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    picture[y[inside], x[inside]] = np.repeat(colours, len(square), 0)[inside]
    return picture


def draw_solid(points: np.ndarray, colours: np.ndarray, pixels: int) -> np.ndarray:
    """A square picture of voxels [N, 3] in colours uint8 [N, 3], seen from obliquely above; the far ones are darker."""
    x, y, z = (points - (points.min(0) + points.max(0)) / 2).T
    right, deep = 0.8 * x - 0.6 * y, 0.6 * x + 0.8 * y
    up, far = 0.7 * deep + 0.71 * z, 0.71 * deep - 0.7 * z
    scale = 0.9 * pixels / max(float(np.ptp(right)), float(np.ptp(up)), 1.0)  # pixels of a voxel
    order = np.argsort(-far, kind="stable")
    shade = np.interp(far, [far.min(), far.max()], [1, 0.45])[order, None]
    places = np.stack([right, -up], -1)[order] * scale + pixels / 2
    return draw(places, (colours[order] * shade).astype("uint8"), (pixels, pixels), dot=int(np.ceil(1.3 * scale)))


def save(path: Path, *pictures: np.ndarray) -> None:
    """Pictures of one height, beside each other."""
    gap = np.full((pictures[0].shape[0], 8, 3), 255, "uint8")
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    Image.fromarray(np.concatenate(parts, 1)).save(path)
