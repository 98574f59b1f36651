"""Focal length and shift of a point map that is known up to a shift along the viewing axis: least squares in one unknown.

A camera with its middle in that of the picture sees the point (x, y, z) at f (x, y) / (z + s) of its view plane, whose unit is
half the diagonal. The shift s is that under which the points lie best at their pixels (u, v):

    minimise over s  sum |f p - q|^2,  p = (x, y) / (z + s),  q = (u, v),  f = sum p.q / sum p.p  or a known one

The solver stops where the public code's does, well before the optimum: its rule decides the fourth digit of the result.

Source: Wang et al., MoGe, arXiv:2410.19115, section 3.1; the solver as Moré, "The Levenberg-Marquardt algorithm: implementation
and theory", 1978, and MINPACK's LMDIF have it, for one unknown.
"""

import math
from collections.abc import Callable

import numpy as np

from sam3d_tvm.photo.arrays import array_kind
from sam3d_tvm.resize import nearest_index

GRID = 64  # samples along each side
FEWEST = 2  # samples that tell a shift
FIRST_BOUND = 100.0  # of |D step|, as it is for a start at 0
SUM_SETTLED, STEP_SETTLED = 1e-3, 1e-8  # relative changes at which it ends: of the sum, and of the shift or along the gradient
EVALUATIONS = 100  # of the residuals at most, beside those for derivatives
EPSILON = float(np.finfo(np.float64).eps)


def view_plane(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels lie in the view plane, relative to half its diagonal: u float32 [W] to the right, v float32 [H] down."""
    across, along = half_sides(height, width)
    return _middles(width, across), _middles(height, along)


def half_sides(height: int, width: int) -> tuple[float, float]:
    """Half the width and half the height of a picture, relative to half its diagonal."""
    aspect = width / height
    diagonal = math.sqrt(1 + aspect**2)
    return aspect / diagonal, 1 / diagonal


def _middles(count: int, half: float) -> np.ndarray:
    return (half * (2 * np.arange(count) + 1 - count) / count).astype(np.float32)


def recover_focal_shift(points: np.ndarray, mask: np.ndarray, focal: float | None = None) -> tuple[np.float32, np.float32]:
    """Focal length, relative to half the diagonal, and shift of points float32 [H, W, 3] in OpenCV's axes, z before the shift.

    mask: bool [H, W], where points count; they are looked at on a grid of 64 x 64 pixels. focal: a known focal length, for
    which the shift alone is fitted. Where fewer than two of these points are in the mask: 1, or the known one, and 0.

    The focal length may come out negative, zero or NaN, where no camera sees the points like this. Raises ValueError for arrays
    of other shapes or dtypes, a focal length that is not finite and above 0, and points in the mask that are not finite.
    """
    if not isinstance(points, np.ndarray) or points.dtype != np.float32 or points.ndim != 3 or points.shape[2] != 3:
        raise ValueError(f"points: expected float32 [H, W, 3], given {array_kind(points)}")
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != points.shape[:2]:
        raise ValueError(f"mask: expected bool {list(points.shape[:2])} as points have, given {array_kind(mask)}")
    if focal is not None and not 0 < focal < np.inf:
        raise ValueError(f"focal: expected a finite number above 0, given {focal!r}")
    height, width = mask.shape
    rows, columns = (nearest_index(side, GRID) for side in (height, width))
    inside = mask[rows][:, columns]  # [64, 64]
    u, v = view_plane(height, width)
    seen = np.stack(np.broadcast_arrays(u[columns], v[rows, None]), -1)[inside]  # [N, 2]
    sampled = points[rows][:, columns][inside]  # [N, 3]
    if len(sampled) < FEWEST:
        return np.float32(1 if focal is None else focal), np.float32(0)
    if not np.isfinite(sampled).all():
        bad = np.count_nonzero(~np.isfinite(sampled).all(1))
        raise ValueError(f"points: expected finite points in the mask, given {bad} of {len(sampled)} samples that are not")
    plane, depth = sampled[:, :2], sampled[:, 2:]

    def residuals(shift: float) -> np.ndarray:  # float64 [2 N]
        projected = plane / (depth + np.float64(shift))
        return (_fitted(projected, seen) * projected - seen if focal is None else focal * projected - seen).ravel()

    with np.errstate(all="ignore"):  # a pole is a large sum, and a step towards it is undone
        shift = np.float32(least_squares(residuals))
        return np.float32(_fitted(plane / (depth + shift), seen) if focal is None else focal), shift


def samples_inside(mask: np.ndarray) -> int:
    """At how many of its samples a mask [H, W] is True."""
    rows, columns = (nearest_index(side, GRID) for side in mask.shape)
    return int(np.count_nonzero(mask[rows][:, columns]))


def _fitted(projected: np.ndarray, seen: np.ndarray) -> np.floating:
    """The focal length under which projected [N, 2] lie best at seen [N, 2]."""
    return (projected * seen).sum() / np.square(projected).sum()


def least_squares(residuals: Callable[[float], np.ndarray]) -> float:
    """Where the sum of squares of `residuals(s)`, float64 [M], is least, from s = 0 on: as LMDIF finds it and where it stops.

    A residual that is not finite ends it at the best s before, as a step whose length is then unknown cannot be shortened.
    """
    shift, found, evaluations = 0.0, residuals(0.0), 1
    norm = np.linalg.norm(found)
    weight, bound, damping = 0.0, FIRST_BOUND, 0.0  # D, that of |D step|, and Levenberg's parameter
    while True:
        step = math.copysign(math.sqrt(EPSILON) * max(1.0, abs(shift)), shift)  # away from 0
        step = (shift + step) - shift  # as far as it goes in float64
        derivative = (residuals(shift + step) - found) / step
        slope, downhill = np.linalg.norm(derivative), float(derivative @ found)
        if not (np.isfinite(slope) and np.isfinite(norm)) or slope == 0 or norm == 0:
            return shift
        if abs(downhill) <= STEP_SETTLED * slope * norm:
            return shift
        weight, first = max(weight, slope), evaluations == 1
        while True:
            damping = _damping(slope, downhill, weight, bound, damping)
            move = -downhill / (slope**2 + damping * weight**2)
            length = weight * abs(move)
            if first:
                bound = min(bound, length)
            tried = residuals(shift + move)
            evaluations += 1
            new_norm = np.linalg.norm(tried)
            if not np.isfinite(new_norm):
                return shift
            gained = 1 - (new_norm / norm) ** 2 if 0.1 * new_norm < norm else -1.0
            by_model, by_damping = (slope * move / norm) ** 2, damping * (length / norm) ** 2
            expected = by_model + 2 * by_damping
            ratio = gained / expected if expected else 0.0
            if ratio <= 0.25:
                falls = by_model + by_damping
                shrink = 0.5 if gained >= 0 else 0.5 * -falls / (-falls + 0.5 * gained)
                if 0.1 * new_norm >= norm or shrink < 0.1:
                    shrink = 0.1
                bound = shrink * min(bound, 10 * length)
                damping /= shrink
            elif damping == 0 or ratio >= 0.75:
                bound, damping = 2 * length, 0.5 * damping
            if taken := ratio >= 1e-4:
                shift, found, norm = shift + move, tried, new_norm
            settled = abs(gained) <= SUM_SETTLED and expected <= SUM_SETTLED and ratio <= 2
            if settled or bound <= STEP_SETTLED * weight * abs(shift) or evaluations >= EVALUATIONS:
                return shift
            if taken:
                break


def _damping(slope: float, downhill: float, weight: float, bound: float, before: float) -> float:
    """Levenberg's parameter under which |D step| is `bound` where it would be above, or the one `before` if that comes near."""

    def length(damping: float) -> float:
        return weight * abs(downhill) / (slope**2 + damping * weight**2)

    if length(0.0) <= 1.1 * bound:
        return 0.0
    exact = (length(0.0) / bound - 1) * (slope / weight) ** 2
    before = min(max(before, exact), abs(downhill) / (weight * bound))
    return before if abs(length(before) - bound) <= 0.1 * bound else exact
