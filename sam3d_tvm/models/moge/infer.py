"""A photo to a map of its points: the depth model's output with its focal length, its shift and its mask.

    found = infer(model, image)          # model: a run.DepthModel
    found.points, found.intrinsics       # metres, as far as the model knows them; x right, y down, z away

Source: Wang et al., MoGe, arXiv:2410.19115, version 1 of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np

from sam3d_tvm.checks import Failure, check_size
from sam3d_tvm.frames import CAMERA, OPENCV, rotation
from sam3d_tvm.models.moge.focal import FEWEST, half_sides, recover_focal_shift, samples_inside
from sam3d_tvm.notices import say
from sam3d_tvm.photo.arrays import array_kind
from sam3d_tvm.photo.camera import PhotoCamera, in_pixels

LEVELS = 9  # the highest resolution_level


class PointModel(Protocol):
    """What `infer` asks of a model: its config, of which `num_tokens_range` and `mask_threshold` are read, and what it runs.

    forward(image float32 [3, H, W] in 0..1, num_tokens) -> points float32 [H, W, 3] in the axes OPENCV, z before the shift, and
    raw mask values float32 [H, W].
    """

    config: Any
    forward: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class DepthMap:
    """What a photo of H x W pixels shows, in the axes OPENCV: x right, y down, z away.

    points: float32 [H, W, 3]; depth: float32 [H, W], their z. Both are infinite where `mask` is False, unless they were asked
    for there too. mask: bool [H, W], where the model sees a surface; mask_prob: float32 [H, W] in 0..1, the same as a
    probability. intrinsics: float32 [3, 3] in fractions of width and height, the middle of the first pixel at half of one.
    """

    points: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    mask_prob: np.ndarray
    intrinsics: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.depth.shape[1], self.depth.shape[0]

    @property
    def pixel_intrinsics(self) -> np.ndarray:
        """Intrinsics float64 [3, 3] in pixels, the middle of the first at (0, 0), as OpenCV and `pointmaps.as_intrinsics` have
        them."""
        return in_pixels(self.intrinsics, self.size)

    @property
    def camera(self) -> PhotoCamera:
        """What took the photo."""
        return PhotoCamera(self.intrinsics.astype(np.float64), self.size)

    @property
    def fov_x(self) -> float:
        """The horizontal field of view in degrees."""
        return self.camera.fov[0]

    @property
    def pointmap(self) -> np.ndarray:
        """float32 [3, H, W] in the axes CAMERA, as `preprocess` takes it: (-x, -y, z), and NaN in all three of a pixel of which
        one is not finite."""
        signs = np.diagonal(rotation(OPENCV, CAMERA)).astype(np.float32)
        turned = np.ascontiguousarray((self.points * signs).transpose(2, 0, 1))
        turned[:, ~np.isfinite(turned).all(0)] = np.nan
        return turned


def infer(
    model: PointModel,
    image: np.ndarray,
    *,
    fov_x: float | None = None,
    resolution_level: float = LEVELS,
    num_tokens: int | None = None,
    force_projection: bool = True,
    apply_mask: bool = True,
) -> DepthMap:
    """The points of a photo float32 [3, H, W] in 0..1, of any shape.

    fov_x: the horizontal field of view in degrees, if it is known. resolution_level: 0 to 9, from the fewest to the most tokens
    that the model was trained with; num_tokens: another number of them. force_projection: points lie on the rays of their
    pixels, depth times the inverse of the intrinsics; without it they are where the model puts them, which is what
    SAM-3D-Objects takes. apply_mask: points and depth are infinite where the model sees no surface.

    Raises ValueError for an image of another kind or with values that are not finite, numbers out of range, and, as
    `checks.Failure`, where the model's points are not those of any camera: no focal length and shift are found for them, as may
    be for a photo of one colour. Where too few points are in the mask for that, the shift is 0, which a `Notice` says.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.ndim != 3 or len(image) != 3 or not image.size:
        raise ValueError(f"image: expected float32 [3, H, W], given {array_kind(image)}")
    if not np.isfinite(image).all():
        raise ValueError("image: expected values in 0..1, given NaN or infinity")
    check_fov(fov_x)
    tokens = _tokens(model.config.num_tokens_range, resolution_level, num_tokens)
    height, width = image.shape[1:]
    across, along = half_sides(height, width)
    known = None if fov_x is None else np.float32(across) / np.tan(np.deg2rad(np.float32(fov_x)) / np.float32(2))

    points, raw = model.forward(image, tokens)
    mask = raw > model.config.mask_threshold
    if (count := samples_inside(mask)) < FEWEST:
        say(f"depth: the model sees a surface at {count} of its samples of the photo, too few for a focal length and a shift")
    focal, shift = recover_focal_shift(points, mask, known)
    if not (0 < focal < np.inf and np.isfinite(shift)):
        raise Failure(
            f"depth: no focal length is found for this photo (of least squares {focal:g} at a shift of {shift:g}): the model's "
            "points are not those of a camera; give the field of view (--fov, fov_x) or a point map (--pointmap)"
        )
    intrinsics = np.array([[focal / (2 * across), 0, 0.5], [0, focal / (2 * along), 0.5], [0, 0, 1]], np.float32)
    depth = points[..., 2] + shift
    if force_projection:
        points = _on_rays(depth, intrinsics)
    else:
        points = np.stack([points[..., 0], points[..., 1], depth], -1)
    if apply_mask:
        points[~mask], depth[~mask] = np.inf, np.inf
    with np.errstate(over="ignore"):
        return DepthMap(points, depth, mask, 1 / (1 + np.exp(-raw)), intrinsics)


def check_fov(fov_x: float | None) -> None:
    """ValueError unless it is None or an angle in degrees, above 0 and below 180."""
    if fov_x is not None and (isinstance(fov_x, bool) or not isinstance(fov_x, Real) or not 0 < fov_x < 180):
        raise ValueError(f"fov_x: expected degrees above 0 and below 180, given {fov_x!r}")


def check_level(level: float) -> None:
    """ValueError unless it is a number from 0 to `LEVELS`."""
    if isinstance(level, bool) or not isinstance(level, Real) or not 0 <= level <= LEVELS:
        raise ValueError(f"resolution_level: expected a number from 0 to {LEVELS}, given {level!r}")


def _tokens(span: tuple[int, int], level: float, tokens: int | None) -> int:
    """How many tokens a photo is made of, at most."""
    if tokens is not None:
        check_size("num_tokens", tokens, 1)
        return int(tokens)
    check_level(level)
    low, high = span
    return int(low + level / LEVELS * (high - low))


def _on_rays(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Points float32 [H, W, 3] of a depth [H, W], on the rays through the middles of its pixels."""
    height, width = depth.shape
    across = ((np.arange(width) + 0.5) / width - 0.5) / float(intrinsics[0, 0])
    down = ((np.arange(height) + 0.5) / height - 0.5) / float(intrinsics[1, 1])
    with np.errstate(invalid="ignore"):  # an infinite depth on the axis
        return np.stack([depth * across.astype(np.float32), depth * down.astype(np.float32)[:, None], depth], -1)
