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
    for dx in range(dot):
        for dy in range(dot):
            x, y = (np.floor(places).astype(int) + [dx, dy]).T
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            picture[y[inside], x[inside]] = colours[inside]
    return picture


def from_the_side(points: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Where points [N, 3] lie in a picture of a square's size, seen from obliquely above: (order, places), the far ones first."""
    x, y, z = (points - (points.min(0) + points.max(0)) / 2).T
    right, deep = 0.8 * x - 0.6 * y, 0.6 * x + 0.8 * y
    up = 0.85 * z + 0.5 * deep
    order = np.argsort(-deep + 0.1 * z, kind="stable")
    places = np.stack([right, -up], -1)
    places *= 0.9 * pixels / max(float(np.ptp(places, 0).max()), 1e-30)
    return order, places[order] + pixels / 2


def save(path: Path, *pictures: np.ndarray) -> None:
    """Pictures of one height, beside each other."""
    gap = np.full((pictures[0].shape[0], 8, 3), 255, "uint8")
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    Image.fromarray(np.concatenate(parts, 1)).save(path)
