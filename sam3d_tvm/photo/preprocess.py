"""From a photo with a mask to the inputs of both generators: cropped and whole, square, and of one size.

Each stage sees the object twice: `image` and `mask` are cropped around it, `rgb_image` and `rgb_image_mask` show the whole
photo. All is set on a square and resized: colours by bilinear interpolation with antialiasing, masks and points by the nearest
pixel. A point map, `pointmap` and `rgb_pointmap`, is a position in space for each pixel, given relative to the object:

    shift = median of the points inside the mask, for each axis
    scale = median over all pixels of max(|x - shift_x|, |y - shift_y|, |z - shift_z|)
    point = (point - shift) / scale

where a median is the lower of two middle values and passes over NaN. Where the map has no point inside the mask the shift is 0
and the scale 1: points stay in the map's units, and so does the pose.

What is empty: outside of the photo everything is 0, and so are the points there. A pixel with a component that is not finite is
NaN in all three, and so is the rim by which a crop is filled up to a square.

Source: the preprocessing of the public SAM-3D-Objects code, from which two things differ. That refuses masks of one or two
pixels across, around which a crop of at least two pixels is taken here; and points that leave the scale or the shift infinite,
or the scale 0, are an error here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sam3d_tvm.checks import check_size
from sam3d_tvm.notices import say
from sam3d_tvm.photo.arrays import array_kind
from sam3d_tvm.photo.images import check_rgba
from sam3d_tvm.resize import nearest_index

SIZE = 518  # pixels: 37 patches of 14
FULL = np.float32(255)  # what stands for 1 in a picture
BAND = 256  # rows of a picture that are held as floats at a time


@dataclass(frozen=True)
class Preprocessed:
    """Inputs of the two stages, arrays by name, and what leads from the units of the structure stage to those of the scene.

    structure, slat: float32; `image` and `rgb_image` `[1, 3, size, size]` in 0..1, `mask` and `rgb_image_mask`
    `[1, 1, size, size]` in 0..1; in `structure`, with a point map, also `pointmap` and `rgb_pointmap` `[1, 3, size, size]`.
    scale, shift: float32 `[1, 3]` as `pose.decode_pose` takes them, or None without a point map.
    """

    structure: dict[str, np.ndarray]
    slat: dict[str, np.ndarray]
    scale: np.ndarray | None
    shift: np.ndarray | None


def preprocess(
    rgba: np.ndarray,
    pointmap: np.ndarray | None = None,
    size: int = SIZE,
    box_size_factor: float = 1.2,
    padding_factor: float = 0.0,
    structure_sees_crop: bool = False,
) -> Preprocessed:
    """Inputs of both stages from a photo uint8 `[H, W, 4]` whose alpha channel is the mask, as `images.load_rgba` gives it.

    pointmap: float32 `[3, h, w]` of any number of pixels, as `images.load_pointmap` gives it. The crop is the box around the
    mask times `box_size_factor`, with a rim of `padding_factor` times its side; inputs are `size` pixels wide.

    With a point map both stages get the same images. Without one the structure stage sees the whole photo in place of the
    crop, as the public code has it, unless `structure_sees_crop`, for models that were trained so; and there is no pose in the
    units of the scene: embed without the modality `pointmap`.

    Beside the arguments it holds no copy of the photo, and of a point map one axis at a time.

    Raises ValueError as `images.check_rgba`, for a point map of another kind, a `size` below 1, a `box_size_factor` below 1, a
    negative `padding_factor`, a mask that is above one half at no pixel of the point map, and points that have no scale and
    shift that are finite. Where the map has no point inside the mask a `Notice` says so.
    """
    check_rgba(rgba)
    check_size("size", size, 1)
    _check_factor("box_size_factor", box_size_factor, 1)
    _check_factor("padding_factor", padding_factor, 0)

    height, width = rgba.shape[:2]
    crop, whole = _window(mask_box(rgba[..., 3], box_size_factor), padding_factor), _window((0, 0, width, height))
    full = {"rgb_image": _resized_colours(rgba, whole, size), "rgb_image_mask": _resized_mask(rgba, whole, size)}
    slat = {"image": _resized_colours(rgba, crop, size), "mask": _resized_mask(rgba, crop, size)} | full
    if pointmap is None:
        whole_photo = {"image": full["rgb_image"], "mask": full["rgb_image_mask"]} | full
        return Preprocessed(dict(slat) if structure_sees_crop else whole_photo, slat, None, None)

    if not isinstance(pointmap, np.ndarray) or pointmap.dtype != np.float32 or pointmap.ndim != 3 or len(pointmap) != 3:
        raise ValueError(f"pointmap: expected float32 [3, h, w], given {array_kind(pointmap)}")
    scale, shift = _scale_and_shift(pointmap, rgba[..., 3])
    points = {name: np.empty((1, 3, size, size), np.float32) for name in ("pointmap", "rgb_pointmap")}
    valid = np.isfinite(pointmap).all(0)  # [h, w]
    whole_map = _window((0, 0, pointmap.shape[2], pointmap.shape[1]))
    for axis in range(3):
        plane = np.full(valid.shape, np.nan, np.float32)
        plane[valid] = (pointmap[axis][valid] - shift[axis]) / scale
        points["pointmap"][0, axis] = _resampled(plane, (height, width), crop, size)
        points["rgb_pointmap"][0, axis] = _sampled(plane, whole_map, size)
    return Preprocessed(slat | points, slat, np.full((1, 3), scale), shift[None])


def mask_box(mask: np.ndarray, factor: float) -> tuple[int, int, int, int]:
    """The box around a mask `[H, W]`, times `factor`: (left, top, right, bottom), of which right and bottom are exclusive.

    The mask has a pixel above 0, and the box is around all such. Its sides are the longer one of the mask, and two pixels at
    least, up to a pixel that rounding costs. It may reach beyond the picture.
    """
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    spans = [(int(found[0]), int(found[-1])) for found in (columns, rows)]
    half = int(max(*(last - first for first, last in spans), 2) * factor) // 2
    centres = [(first + last) / 2 for first, last in spans]
    left, top = (int(centre - half) for centre in centres)  # towards 0, also where that is to the right
    right, bottom = (int(centre + half) for centre in centres)
    return left, top, right, bottom


@dataclass(frozen=True)
class _Window:
    """A square over a picture, in its pixels, of which only a box is looked through; both may reach beyond the picture."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    left: int  # of the square
    top: int
    side: int


def _window(box: tuple[int, int, int, int], padding_factor: float = 0.0) -> _Window:
    """The square around the middle of a box, with a rim of `padding_factor` of its side."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    rim = int(side * padding_factor)
    return _Window(box, left - (side - right + left) // 2 - rim, top - (side - bottom + top) // 2 - rim, side + 2 * rim)


def _resized_colours(rgba: np.ndarray, window: _Window, size: int) -> np.ndarray:
    """float32 [1, 3, size, size] of a picture [H, W, 4] through a window: bilinear, 0 where there is none."""
    left, top, right, bottom = window.box
    first, last = max(left, 0), min(right, rgba.shape[1])
    narrow = np.zeros((3, window.side, size), np.float32)  # the window at its full height and its final width
    for start in range(max(top, 0), min(bottom, rgba.shape[0]), BAND):
        stop = min(start + BAND, bottom, rgba.shape[0])
        band = np.zeros((stop - start, window.side), np.float32)
        for channel in range(3):
            np.divide(rgba[start:stop, first:last, channel], FULL, out=band[:, first - window.left : last - window.left])
            narrow[channel, start - window.top : stop - window.top] = _bilinear(band, stop - start, size)
    return np.stack([_bilinear(channel, size, size) for channel in narrow])[None]


def _resized_mask(rgba: np.ndarray, window: _Window, size: int) -> np.ndarray:
    """float32 [1, 1, size, size] of the alpha channel of a picture [H, W, 4] through a window."""
    return (_sampled(rgba[..., 3], window, size) / FULL)[None, None]


def _sampled(plane: np.ndarray, window: _Window, size: int) -> np.ndarray:
    """The nearest pixels [size, size] of a plane [H, W] through a window, 0 where there are none."""
    return _looked_through(window, size, plane.shape, lambda rows, columns: plane[rows][:, columns])


def _resampled(plane: np.ndarray, shape: tuple[int, int], window: _Window, size: int) -> np.ndarray:
    """The nearest pixels [size, size] of one axis of a point map [h, w], resized to a picture's (H, W), through a window."""

    def points(rows, columns):
        if len(rows) == 0 or len(columns) == 0:  # of a crop that is looked at beyond the picture alone
            return np.zeros((len(rows), len(columns)), np.float32)
        holes = np.isnan(plane)
        # Columns are interpolated before rows, so that only what is looked at need be kept of either.
        narrow = _bilinear(np.where(holes, np.float32(0), plane), plane.shape[0], shape[1])[:, columns]
        found = _bilinear(narrow, shape[0], len(columns))[rows]
        holes = holes[nearest_index(plane.shape[0], shape[0])[rows]][:, nearest_index(plane.shape[1], shape[1])[columns]]
        return np.where(holes, np.float32(np.nan), found)

    return _looked_through(window, size, shape, points, rim=np.nan)


def _looked_through(window: _Window, size: int, shape: tuple[int, int], pixels: Callable, rim: float = 0) -> np.ndarray:
    """The nearest pixels [size, size] of a picture (H, W) through a window: 0 beyond the picture, `rim` beyond the box.

    `pixels(rows, columns)`: those of the picture, [rows, columns].
    """
    left, top, right, bottom = window.box
    nearest = nearest_index(window.side, size)
    rows, columns = window.top + nearest, window.left + nearest
    rows_in_box, columns_in_box = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    rows_seen = rows_in_box & (rows >= 0) & (rows < shape[0])
    columns_seen = columns_in_box & (columns >= 0) & (columns < shape[1])
    values = pixels(rows[rows_seen], columns[columns_seen])
    result = np.full((size, size), rim, values.dtype)
    result[np.ix_(rows_in_box, columns_in_box)] = 0
    result[np.ix_(rows_seen, columns_seen)] = values
    return result


def _bilinear(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """A plane [H, W] of floats resized to [height, width], the mean under a triangle where it shrinks; columns first."""
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))


def _scale_and_shift(pointmap: np.ndarray, mask: np.ndarray) -> tuple[np.float32, np.ndarray]:
    """float32 [] and [3]: where the object is, and how far from it the scene reaches. pointmap [3, h, w], mask uint8 [H, W]."""
    rows, columns = (nearest_index(mask.shape[i], pointmap.shape[i + 1]) for i in range(2))
    inside = mask[rows][:, columns] > 127  # [h, w], above one half
    if not inside.any():
        raise ValueError(
            "mask: expected pixels above one half, where points are the object's, "
            f"given none at the {list(inside.shape)} pixels of the point map, up to {mask.max()} of 255"
        )
    if not np.isfinite(pointmap[:, inside]).all(0).any():
        say(
            f"pointmap: has no point in the {np.count_nonzero(inside)} pixels of the mask, so that nothing tells where the "
            "object is and how large: its pose is as if it were at the camera, one unit of the map in size"
        )
        return np.float32(1), np.zeros(3, np.float32)
    shift = np.array([_lower_median(plane[inside]) for plane in pointmap])
    if np.isfinite(shift).all():
        farthest = np.zeros(inside.shape, np.float32)
        for plane, middle in zip(pointmap, shift, strict=True):
            np.maximum(farthest, abs(plane - middle), out=farthest)
        scale = _lower_median(farthest)
        if 0 < scale < np.inf:
            return scale, shift
        raise ValueError(f"pointmap: expected points around the object at a finite distance, given a median of {scale}")
    raise ValueError(f"pointmap: expected mostly finite points inside the mask, given a median of {shift.tolist()}")


def _lower_median(values: np.ndarray) -> np.float32:
    """The middle value of those that are not NaN, the lower of two."""
    values = values[~np.isnan(values)]
    middle = (len(values) - 1) // 2
    return np.partition(values, middle)[middle]


def _check_factor(name: str, value: float, least: float) -> None:
    if not (isinstance(value, (int, float)) and least <= value < np.inf):
        raise ValueError(f"{name}: expected a finite number of at least {least}, given {value!r}")
