"""How like one another two objects are: their voxels, surfaces, pictures and poses. On numpy arrays; each says its formula."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import binary_fill_holes, correlate1d
from scipy.spatial import cKDTree

FULL = 255.0  # the range of a picture
WINDOW, DEVIATION = 11, 1.5  # pixels, of the Gaussian window of `ssim`
K1, K2 = 0.01, 0.03  # of `ssim`
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue in brightness, ITU-R BT.601
SHELL = 0.01  # half the thickness, in units of the cube, of the shell that points are drawn from before they go to the surface
ON_SURFACE = 1e-3  # how far from the surface a drawn point may be left
NEWTON_STEPS, SLOPE = 4, 2e-3  # and the step of its difference quotients
ATTEMPTS = 200  # draws of as many points as are wanted, at most


def filled(coords: np.ndarray, resolution: int) -> np.ndarray:
    """bool [R, R, R]: voxels int32 [N, 4] as (0, x, y, z), and those between them that no path from outside reaches, from face
    to face of empty voxels. What `voxels.prune` takes away is there again, and so is matter where there was a closed hollow."""
    grid = np.zeros([resolution] * 3, bool)
    grid[tuple(coords[:, 1:].T)] = True
    return binary_fill_holes(grid)


def voxel_iou(found: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of occupied voxels, both bool [R, R, R]: |found and true| / |found or true|; 1 for two empty
    grids."""
    union = np.count_nonzero(found | true)
    return float(np.count_nonzero(found & true) / union) if union else 1.0


def mesh_points(vertices: np.ndarray, faces: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` points float64 [count, 3], even over the area of triangles: faces int [F, 3] of vertices float [V, 3]. In a
    triangle a, b, c they are a + (1 - sqrt u) (b - a) + v sqrt u (c - a), u and v even in 0..1 (Osada et al., Shape
    Distributions, 2002). None for a mesh without area."""
    first, second, third = vertices.astype(np.float64)[faces.T]
    areas = np.linalg.norm(np.cross(second - first, third - first), axis=1)
    if not areas.sum() > 0:
        return np.zeros((0, 3))
    chosen = random.choice(len(areas), count, p=areas / areas.sum())
    root, part = np.sqrt(random.random(count))[:, None], random.random(count)[:, None]
    first, second, third = first[chosen], second[chosen], third[chosen]
    return first + (1 - root) * (second - first) + part * root * (third - first)


def surface_points(
    distance: Callable[[np.ndarray], np.ndarray], half: np.ndarray, count: int, random: np.random.Generator
) -> np.ndarray:
    """`count` points float64 [count, 3], about even over the surface of a signed distance in the box from -half to half [3].

    distance(points float32 [N, 3]) -> [N], which need not be exact. Drawn are even points of the box, kept those whose distance
    over its slope is below `SHELL`, so that a thin shell is even whatever the slope; each then goes to the surface by Newton's
    steps, p - d grad d / |grad d|^2. ValueError where next to nothing is near a surface.
    """
    found: list[np.ndarray] = []
    reach = np.asarray(half, np.float64) + SHELL
    for _ in range(ATTEMPTS):
        points = random.uniform(-reach, reach, (4 * count, 3))
        values = distance(points.astype(np.float32)).astype(np.float64)
        points = points[np.abs(values) < 3 * SHELL]  # cheap, before slopes are looked at
        values, slopes = _with_slopes(distance, points)
        near = np.abs(values) < SHELL * np.linalg.norm(slopes, axis=1)
        points = points[near]
        for _ in range(NEWTON_STEPS):
            values, slopes = _with_slopes(distance, points)
            points = points - slopes * (values / np.maximum((slopes**2).sum(1), 1e-6))[:, None]
        found.append(points[np.abs(distance(points.astype(np.float32))) < ON_SURFACE])
        if sum(map(len, found)) >= count:
            return np.concatenate(found)[:count]
    raise ValueError(f"distance: expected a surface, found {sum(map(len, found))} points near one")


def _with_slopes(distance: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances [N] at points [N, 3] and their gradients [N, 3], by central differences, in one call."""
    steps = SLOPE * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    around = (points + steps[:, None]).reshape(-1, 3).astype(np.float32)
    values = distance(around).astype(np.float64).reshape(7, -1)
    return values[0], (values[1:4] - values[4:7]).T / (2 * SLOPE)


def f_score(found: np.ndarray, true: np.ndarray, threshold: float) -> float:
    """The harmonic mean of precision, the share of points `found` [N, 3] that are at most `threshold` from one of `true`
    [M, 3], and recall, the same the other way round (Knapitsch et al., Tanks and Temples, 2017); 0 without points."""
    if not len(found) or not len(true):
        return 0.0
    precision, recall = (np.mean(distances <= threshold) for distances in _nearest(found, true))
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def chamfer_distance(found: np.ndarray, true: np.ndarray) -> float:
    """Half of the mean distance of points `found` [N, 3] from the nearest of `true` [M, 3], plus half of that the other way
    round, in the points' units (Fan et al., A Point Set Generation Network, 2017; distances themselves, not their squares).
    Infinite without points."""
    if not len(found) or not len(true):
        return float("inf")
    return float(np.mean([distances.mean() for distances in _nearest(found, true)]))


def _nearest(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far every point of `found` is from `true`, [N], and every point of `true` from `found`, [M]."""
    return cKDTree(true).query(found)[0], cKDTree(found).query(true)[0]


def psnr(found: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures uint8 [H, W, 3] in dB, 10 log10(255^2 / mean squared difference); infinite for
    equal ones."""
    error = np.mean((found.astype(np.float64) - true.astype(np.float64)) ** 2)
    return float(10 * np.log10(FULL**2 / error)) if error > 0 else float("inf")


def ssim(found: np.ndarray, true: np.ndarray) -> float:
    """Structural similarity of two pictures uint8 [H, W, 3], in brightness, the mean over windows that lie within them.

    With means m, variances v and covariance c in a window of 11 x 11 pixels, weighed by a Gaussian of deviation 1.5:

        (2 m_x m_y + C1) (2 c + C2) / ((m_x^2 + m_y^2 + C1) (v_x + v_y + C2)),    C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2

    (Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004). ValueError for pictures of
    other shapes, or smaller than a window.
    """
    if found.shape != true.shape or min(found.shape[:2]) < WINDOW:
        raise ValueError(
            f"found: expected a picture as {list(true.shape)} of at least {WINDOW} pixels, given {list(found.shape)}"
        )
    x, y = (picture.astype(np.float64) @ LUMA for picture in (found, true))
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x, variance_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = (K1 * FULL) ** 2, (K2 * FULL) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((above / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())


def _windowed(plane: np.ndarray) -> np.ndarray:
    """The Gaussian mean of a plane [H, W] around every pixel whose window lies within it."""
    rim = WINDOW // 2
    weights = np.exp(-(np.arange(-rim, rim + 1) ** 2) / (2 * DEVIATION**2))
    weights /= weights.sum()
    return correlate1d(correlate1d(plane, weights, 0), weights, 1)[rim:-rim, rim:-rim]


def rotation_error(found: np.ndarray, true: np.ndarray) -> float:
    """The angle in degrees by which one rotation [3, 3] must be turned to be the other, arccos((trace(found^T true) - 1) / 2),
    here by the chord |found - true| = sqrt(8) sin(angle / 2), which is exact for small ones, too (Huynh, Metrics for 3D
    Rotations, 2009)."""
    chord = np.linalg.norm(found.astype(np.float64) - true.astype(np.float64))
    return float(np.degrees(2 * np.arcsin(min(1.0, chord / np.sqrt(8)))))


def elevation(rotation: np.ndarray) -> float:
    """How far down in degrees a camera looks at an object, of the rotation [3, 3] of the object's pose, by which points as rows
    are multiplied from the right: its third column is where the camera looks, in the object's axes, z up."""
    return float(np.degrees(np.arcsin(np.clip(-rotation[2, 2], -1, 1))))
