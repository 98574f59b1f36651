"""Perspective cameras, and rings of them around what a frame holds; a camera looks along its own z, y down.

Pixels are counted from the top left corner of the picture: the centre of its first pixel is (0.5, 0.5).
"""

from dataclasses import dataclass, replace

import numpy as np

from sam3d_tvm.checks import check_finite, check_size
from sam3d_tvm.frames import OBJECT, Frame, rotation

FOCAL = 1.5  # an angle of view of 37 degrees
MARGIN = 0.05  # free on every side, as a part of the picture
UNIT = 1e-6  # how far a rotation may be from orthonormal
LEAST_RADIUS = 0.01  # from which a box that is a single point is seen


@dataclass(frozen=True, eq=False)
class Camera:
    """Rotation [3, 3], whose rows are the directions right, down and forward in the world; position [3] in the world; focal
    length in units of the picture's width. All float64.

    Raises ValueError for other shapes, values that are not finite, a matrix that is no rotation, a focal length not above 0.
    """

    rotation: np.ndarray
    position: np.ndarray
    focal: float = FOCAL

    def __post_init__(self):
        object.__setattr__(self, "rotation", as_floats("rotation", self.rotation, (3, 3)))
        object.__setattr__(self, "position", as_floats("position", self.position, (3,)))
        check_positive("focal", self.focal)
        off = np.abs(self.rotation @ self.rotation.T - np.eye(3)).max()
        if off > UNIT or np.linalg.det(self.rotation) < 0:
            raise ValueError(f"rotation: expected an orthonormal, right-handed matrix, given {self.rotation.tolist()}")

    def view(self, points: np.ndarray) -> np.ndarray:
        """Points [N, 3] of the world as the camera sees them, (right, down, forward) of it: float64 [N, 3]."""
        return (points - self.position) @ self.rotation.T

    def project(self, points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Where points [N, 3] of the world are in a picture of `size` x `size` pixels.

        Returns pixels float64 [N, 2], (right, down), and depth float64 [N] along the viewing direction, in world units. Points
        that are not in front of the camera, at a depth of 0 or below, have NaN as their pixel.

        Raises ValueError for points of another shape or not finite, and a size below 1.
        """
        check_size("size", size, 1)
        viewed = self.view(as_floats("points", points, (None, 3)))
        depth = viewed[:, 2]
        ahead = np.where(depth > 0, depth, np.nan)[:, None]
        return size * (0.5 + self.focal * viewed[:, :2] / ahead), depth


def orbit(
    count: int,
    elevation_degrees: float = 20.0,
    center=(0.0, 0.0, 0.0),
    radius: float = 2.0,
    focal: float = FOCAL,
    frame: Frame = OBJECT,
) -> list[Camera]:
    """`count` cameras in equal steps on a circle, counterclockwise as seen from above, that all look at `center` [3].

    `frame` says what is up. The first camera is in front, and so sees the frame's right to the right: in an object it stands
    towards -y, in a scene where the photographer stood. Elevation is above the ground, from -90 to 90 degrees; radius is the
    distance to the centre in world units. Raises ValueError for values outside of these, a count below 1, and as `Camera`.
    """
    center = as_floats("center", center, (3,))
    check_positive("radius", radius)
    turns = _rotations(count, elevation_degrees, frame)
    return [Camera(turn, center - radius * turn[2], focal) for turn in turns]


def orbit_box(
    low, high, count: int, elevation_degrees: float = 20.0, focal: float = FOCAL, frame: Frame = OBJECT
) -> list[Camera]:
    """As `orbit`, around the middle of the box from `low` [3] to `high` [3], as near as it fits into every view with a margin.

    A box without extent is seen from a small distance. Raises ValueError for a box whose low is above its high, and as `orbit`.
    """
    low, high = as_floats("low", low, (3,)), as_floats("high", high, (3,))
    if (low > high).any():
        raise ValueError(f"low: expected a corner that is nowhere above high {high.tolist()}, given {low.tolist()}")
    check_positive("focal", focal)
    radius = fitting_radius(high - low, _rotations(count, elevation_degrees, frame), focal)
    return orbit(count, elevation_degrees, (low + high) / 2, max(radius, LEAST_RADIUS), focal, frame)


def fitting_radius(extent: np.ndarray, turns: np.ndarray, focal: float = FOCAL) -> float:
    """From how far away a box of `extent` [3] fits, with a margin, into the pictures of cameras that look at its middle, of
    rotations `turns` [..., 3, 3]."""
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) * extent
    viewed = corners @ np.swapaxes(turns, -1, -2)  # [..., 8, 3]
    # focal * |right or down| / (radius + forward) is at most half of the picture less the margin.
    return (np.abs(viewed[..., :2]).max(-1) * focal / (0.5 - MARGIN) - viewed[..., 2]).max()


def camera_towards(position, low, high, frame: Frame = OBJECT) -> Camera | None:
    """A camera at `position` [3] that looks at the middle of the box from `low` [3] to `high` [3], upright as `frame` says, and
    of a focal length that fills the picture with it but for a margin; None where the box is not in front of it as a whole."""
    position, low, high = (as_floats(name, v, (3,)) for name, v in (("position", position), ("low", low), ("high", high)))
    forward, up = (low + high) / 2 - position, np.array(frame.up, np.float64)
    right = np.cross(forward, up)
    if not np.linalg.norm(right) > UNIT * np.linalg.norm(forward):
        return None
    axes = np.stack([right, np.cross(forward, right), forward])
    camera = Camera(axes / np.linalg.norm(axes, axis=1, keepdims=True), position)
    corners = camera.view(np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * (high - low) + low)
    if not corners[:, 2].min() > 0:
        return None
    extent = (np.abs(corners[:, :2]) / corners[:, 2:]).max()
    return replace(camera, focal=(0.5 - MARGIN) / extent) if extent > 0 else camera


def _rotations(count: int, elevation_degrees: float, frame: Frame) -> np.ndarray:
    """Rotations [count, 3, 3] of cameras around a circle."""
    check_size("count", count, 1)
    if not -90 <= as_floats("elevation_degrees", elevation_degrees, ()) <= 90:
        raise ValueError(f"elevation_degrees: expected a number from -90 to 90, given {elevation_degrees!r}")
    azimuth = 2 * np.pi * np.arange(count) / count - np.pi / 2
    elevation = np.full(count, np.deg2rad(elevation_degrees))
    right = np.stack([-np.sin(azimuth), np.cos(azimuth), np.zeros(count)], -1)
    level = np.stack([np.cos(azimuth), np.sin(azimuth)], -1) * np.cos(elevation)[:, None]
    forward = -np.concatenate([level, np.sin(elevation)[:, None]], -1)
    return np.stack([right, np.cross(forward, right), forward], 1) @ rotation(frame, OBJECT)


def as_floats(name: str, values, shape: tuple, dtype=np.float64) -> np.ndarray:
    """`values` as a finite array of `dtype` and `shape`, in which None is any size; ValueError unless they are that."""
    array = np.asarray(values)
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in "iuf" or not fits:
        wanted = ", ".join("N" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: expected numbers [{wanted}], given {array.dtype} {list(array.shape)}")
    with np.errstate(over="ignore"):  # what is too large for the dtype is infinite then
        array = array.astype(dtype)
    check_finite(name, array)
    return array


def check_positive(name: str, value: float) -> None:
    """ValueError unless `value` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < np.inf:
        raise ValueError(f"{name}: expected a finite number above 0, given {value!r}")
