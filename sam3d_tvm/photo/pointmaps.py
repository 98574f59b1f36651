"""Point maps as people have them: of any camera's axes, or depth with intrinsics, to float32 `[3, H, W]` in the axes `CAMERA`.

A point map holds a point of the scene for each pixel of a picture, from whose number of pixels its own may differ. Where a
point is not known it is NaN, infinite, or exactly (0, 0, 0).

Axes are told by signs: z is positive away from the viewer or negative; x / |z| grows or falls along the columns, y / |z| along
the rows. That holds wherever the camera's middle is, and for mirrored and left-handed axes too.

Depth is in metres, or in units of which `depth_scale` are one metre (1000 for integers), along the camera's axis, not its rays.
Intrinsics are those of the depth map's pixels, the middle of the first at (0, 0) as in OpenCV: x = (column - cx) / fx * depth.
In fractions of width and height, as MoGe has them, the middle of the first is at half a pixel.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
from PIL import Image

from sam3d_tvm.checks import check_choice
from sam3d_tvm.frames import CAMERA, OPENCV, OPENGL, Frame, rotation
from sam3d_tvm.notices import say
from sam3d_tvm.photo.arrays import ARRAYS, array_kind, as_array, check_is_file, check_sides, read_array, read_arrays
from sam3d_tvm.photo.camera import PhotoCamera, in_fractions, in_pixels
from sam3d_tvm.photo.orientation import UPRIGHT, in_words, swaps_sides, upright_points
from sam3d_tvm.photo.pictures import WIDE_MODES, load_pixels, opened, wide_values
from sparse_ops.deploy.reading import brief, parse_json

POINTS = ("pointmap", "pointmaps", "points")  # names of arrays in a file of several
DEPTH = ("depth",)
SEEN = "axes_seen"  # beside points in a file: what `axes_seen` would say of them
INTRINSICS = ("intrinsics", "K", "intrinsic_matrix", "camera_matrix")
AXES: dict[str, Frame] = {"pytorch3d": CAMERA, "opencv": OPENCV, "opengl": OPENGL}
AUTO = "auto"
CLEAR = 0.5  # of pixels to the left and to the right of the median, the excess that is on the side which the axis says
ENOUGH = 1 << 18  # pixels that are looked at for axes, where a larger map has points everywhere
SAME_SIDE = 0.95  # of points that a camera may see are in front of it
STRETCHED = 1.05  # width to height against the photo's
UNITS_A_METRE = 1000  # of depth in integers
NORMALISED = 10  # focal lengths below are no pixels, but fractions of the sides
MAX_TEXT = 1 << 16  # bytes of a text file of intrinsics


@dataclass(frozen=True, eq=False)
class PointMap:
    """points: float32 `[3, H, W]` in the axes `CAMERA`, NaN where they are unknown. intrinsics: of their camera, float64
    `[3, 3]` in fractions of width and height, or None where they are not known."""

    points: np.ndarray
    intrinsics: np.ndarray | None = None

    def camera(self, size: tuple[int, int]) -> PhotoCamera | None:
        """The camera of the photo of that width and height, if it is known."""
        return None if self.intrinsics is None else PhotoCamera(self.intrinsics, size)


def load_pointmap(path: str | os.PathLike) -> np.ndarray:
    """A point map, float32 `[3, H, W]` in the axes of its file: .npy, or .npz, .pt or .pth of one array or one of `POINTS`.

    Raises ValueError for a file that cannot be read, or holds pickled objects, and as `as_pointmap`.
    """
    name = f"pointmap {str(path)!r}"
    return as_pointmap(read_array(path, name, POINTS), name)


def _pointmap_and_beside(path: str | os.PathLike, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """As `load_pointmap`, and what stands beside the points in their file, of `SEEN` and `INTRINSICS`."""
    beside = (SEEN, *INTRINSICS)
    found = read_arrays(path, name, POINTS, beside)
    key = next(key for key in found if key not in beside)
    return as_pointmap(found.pop(key), name), found


def as_pointmap(points: np.ndarray, name: str = "pointmap") -> np.ndarray:
    """Floats `[3, H, W]` or `[H, W, 3]`, also as a batch of one, as float32 `[3, H, W]` with NaN at points (0, 0, 0).

    The array itself where it is that already. `name` is what errors call it. Raises ValueError for anything else, for an array
    of both shapes at once, and for a map without any finite point.
    """
    points = as_array(points, name)
    if isinstance(points, np.ndarray) and points.ndim == 4 and len(points) == 1:
        points = points[0]
    if not isinstance(points, np.ndarray) or points.dtype.kind != "f" or points.ndim != 3 or 3 not in points.shape[::2]:
        raise ValueError(f"{name}: expected floats [3, H, W] or [H, W, 3], given {array_kind(points)}")
    if points.shape[0] == points.shape[2]:
        raise ValueError(f"{name}: expected either [3, H, W] or [H, W, 3], given {list(points.shape)}, which may be both")
    if points.shape[2] == 3:
        points = points.transpose(2, 0, 1)
    check_sides(points.shape[2], points.shape[1], name)
    with np.errstate(over="ignore"):  # beyond float32: infinite, which is no point
        found = np.ascontiguousarray(points, np.float32)
    holes = ~found.any(0)
    if holes.any():
        found = np.where(holes, np.float32(np.nan), found)
    return found


def load_points(*args, **options) -> np.ndarray | None:
    """The points of `load_point_map`."""
    found = load_point_map(*args, **options)
    return None if found is None else found.points


def load_point_map(
    pointmap: str | os.PathLike | np.ndarray | None,
    axes: str = AUTO,
    depth: str | os.PathLike | np.ndarray | Image.Image | None = None,
    depth_scale: float | None = None,
    intrinsics: str | os.PathLike | Sequence[float] | np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    orientation: int = UPRIGHT,
) -> PointMap | None:
    """A point map from what there is, or None where there is nothing.

    pointmap: a file as in `load_pointmap`, or an array as in `as_pointmap`, in `axes`: "pytorch3d", "opencv", "opengl", or
    "auto", which tells them by the points and says so, unless the file has its own in `SEEN`. Intrinsics in the file are those
    of the result. depth, depth_scale, intrinsics: in place of a point map, see `depth_as_points`; `axes` do not count then.
    size, orientation: width and height of the photo as it is seen, and how its file lies; a map whose shape fits the file alone
    is turned with it, and a `Notice` says so; its intrinsics are lost then.

    Raises ValueError for both a point map and depth, intrinsics or a scale without depth, maps without points or where all are
    the same, points behind the camera, and axes that "auto" cannot tell.
    """
    check_choice("pointmap_axes", axes, (AUTO, *AXES))
    if depth is None:
        for name, value in (("intrinsics", intrinsics), ("depth_scale", depth_scale)):
            if value is not None:
                raise ValueError(f"{name}: expected with depth alone, given {value!r} without it")
        if pointmap is None:
            return None
        name, beside = "pointmap", {}
        if isinstance(pointmap, (str, os.PathLike)):
            name = f"pointmap {str(pointmap)!r}"
            points, beside = _pointmap_and_beside(pointmap, name)
        else:
            points = as_pointmap(pointmap)
        _check_points(points, name)
        signs = _signs_beside(beside.get(SEEN)) if axes == AUTO else None
        points = _unknown_as_nan(in_camera_axes(points, axes, name) if signs is None else _turned(points, signs))
        matrix = _intrinsics_beside(beside, points, name)
    elif pointmap is not None:
        raise ValueError("depth: expected depth or a point map, given both")
    else:
        name = f"depth {str(depth)!r}" if isinstance(depth, (str, os.PathLike)) else "depth"
        points, matrix = _points_of_depth(depth, intrinsics, depth_scale)
        _check_points(points, name)
    if size is None:
        return PointMap(points, matrix)
    turned = _as_the_photo(points, size, orientation, name)
    return PointMap(turned, matrix if turned is points else None)


def _signs_beside(seen: np.ndarray | None) -> tuple[int, int, int] | None:
    """What the entry `SEEN` of a file says; None without one, and for one that says something else."""
    signs = None if seen is None or seen.shape != (3,) else tuple(seen.tolist())
    return signs if signs is not None and all(sign in (-1, 1) for sign in signs) else None


def _intrinsics_beside(beside: Mapping[str, np.ndarray], points: np.ndarray, name: str) -> np.ndarray | None:
    """The intrinsics, in fractions, that stand beside points; None without, and for what is none, as they are not needed."""
    given = next((beside[key] for key in INTRINSICS if key in beside), None)
    if given is None:
        return None
    try:
        matrix = _as_matrix(given, "intrinsics")
    except ValueError as error:
        say(f"{name}: what it has as intrinsics is not used: {error}")
        return None
    return matrix if _is_normalised(matrix) else in_fractions(matrix, points.shape[:0:-1])


def in_camera_axes(points: np.ndarray, axes: str, name: str = "pointmap") -> np.ndarray:
    """Points float32 `[3, H, W]` in `axes`, turned to `CAMERA`; themselves where they are that.

    ValueError where "auto" does not tell, and for points behind the camera in the axes that were named.
    """
    seen = axes_seen(points)
    if axes == AUTO:
        if 0 in seen:
            unclear = " and ".join(axis for axis, sign in zip("xyz", seen, strict=True) if sign == 0)
            raise ValueError(
                f"{name}: expected points that show their axes, given some where {unclear} does not: z must be on one side of "
                f"the camera, x / |z| change along the columns, y / |z| along the rows; name them by --pointmap-axes "
                f"(pointmap_axes): {', '.join(AXES)}"
            )
        names = [known for known, frame in AXES.items() if signs_of(frame) == seen]
        words = _words(seen)
        say(f"{name}: axes are {f'those of {names[0]}, ' if names else ''}{words}, by the signs of its points")
        signs = seen
    else:
        signs = signs_of(AXES[axes])
        if seen[2] == -signs[2]:
            raise ValueError(
                f"{name}: expected points in front of the camera, given z {'below' if seen[2] < 0 else 'above'} 0, which is "
                f"behind it in the axes of {axes} ({_words(signs)}); its points look like {_words(seen)}"
            )
        if any(found == -sign for found, sign in zip(seen, signs, strict=True)):
            say(f"{name}: axes are named as those of {axes} ({_words(signs)}), but its points look like {_words(seen)}")
    return _turned(points, signs)


def _turned(points: np.ndarray, signs: Sequence[int]) -> np.ndarray:
    """Points float32 [3, H, W] of which `axes_seen` are `signs`, in `CAMERA`; themselves where they are that."""
    # What is seen of CAMERA itself: x falls along the columns, y falls along the rows, z is away.
    factors = np.float32([sign * own for sign, own in zip(signs, signs_of(CAMERA), strict=True)])
    return points if (factors == 1).all() else points * factors[:, None, None]


def axes_seen(points: np.ndarray) -> tuple[int, int, int]:
    """What points float32 `[3, H, W]` say of their axes: 1 where x grows along the columns, y along the rows, z is above 0; -1
    where it is the other way; 0 where that is not clear."""
    step = int(max(np.sqrt(points[0].size / ENOUGH), 1))
    few = points[:, ::step, ::step]
    valid = np.isfinite(few).all(0) & (few[2] != 0)
    if step > 1 and valid.mean() > 0.01:
        points = few
    else:
        valid = np.isfinite(points).all(0) & (points[2] != 0)
    if not valid.any():
        return 0, 0, 0
    x, y, z = (plane[valid] for plane in points)
    rows, columns = np.nonzero(valid)
    above = (z > 0).mean()
    away = 1 if above >= SAME_SIDE else -1 if above <= 1 - SAME_SIDE else 0
    with np.errstate(over="ignore"):
        return _trend(x / np.abs(z), columns), _trend(y / np.abs(z), rows), away


def _trend(values: np.ndarray, places: np.ndarray) -> int:
    """1 if values grow with places, -1 if they fall, 0 if that is not clear. Against their medians: outliers do nothing."""
    low, high = np.sign(values - np.median(values)), np.sign(places - np.median(places))
    count = np.count_nonzero(low * high)
    excess = float((low * high).sum()) / max(count, 1)
    if 2 * count < len(values):  # most lie on a median: there is no spread
        return 0
    return int(np.sign(excess)) if abs(excess) >= CLEAR else 0


def signs_of(frame: Frame) -> tuple[int, int, int]:
    """What `axes_seen` says of points in a frame whose axes are those of OpenCV up to their signs."""
    return tuple(int(sign) for sign in np.diagonal(rotation(frame, OPENCV)))


def _words(seen: Sequence[int]) -> str:
    choices = (("x right", "x left"), ("y down", "y up"), ("z away from the viewer", "z towards the viewer"))
    unclear = ("x unclear", "y unclear", "z unclear")
    return ", ".join(unclear[axis] if sign == 0 else choices[axis][int(sign < 0)] for axis, sign in enumerate(seen))


def depth_as_points(depth, intrinsics=None, depth_scale: float | None = None) -> np.ndarray:
    """Points float32 `[3, H, W]` in the axes `CAMERA` of a depth map and a camera's intrinsics.

    depth: `[H, W]`, also with an axis of 1 before or behind, as integers or floats, or a file: .png of 16 bits, .tiff, .npy, or
    .npz, .pt or .pth of one array or with a `depth`. 0, NaN and infinity are unknown. depth_scale: units in a metre, by default
    1000 for integers and 1 for floats. intrinsics: fx, fy, cx, cy as four numbers or as text, a matrix [3, 3], or a file of
    either: .npy, .npz, .pt, .json or .txt; by default those in the file of the depth.

    Raises ValueError for negative depth, 8 bits of it without a scale, none or wrong intrinsics, files that cannot be read.
    """
    return _points_of_depth(depth, intrinsics, depth_scale)[0]


def _points_of_depth(depth, intrinsics, depth_scale: float | None) -> tuple[np.ndarray, np.ndarray]:
    """What `depth_as_points` returns, and the intrinsics in fractions."""
    name = f"depth {str(depth)!r}" if isinstance(depth, (str, os.PathLike)) else "depth"
    values, beside = _depth_values(depth, name)
    if depth_scale is None:
        if values.dtype.itemsize == 1:
            raise ValueError(f"{name}: expected 16 bits or floats, given 8 bits, as pictures of depth have; or say depth_scale")
        depth_scale = UNITS_A_METRE if values.dtype.kind in "iu" else 1
    if isinstance(depth_scale, bool) or not isinstance(depth_scale, Real) or not 0 < depth_scale < np.inf:
        raise ValueError(f"depth_scale: expected a finite number above 0, given {depth_scale!r}")
    known = np.isfinite(values) & (values != 0)
    if (values[known] < 0).any():
        raise ValueError(
            f"{name}: expected depth above 0, and 0 where it is unknown, given values down to {values[known].min():g}"
        )
    given = beside if intrinsics is None else intrinsics
    if given is None:
        raise ValueError(f"intrinsics: expected those of the camera with {name}, as fx,fy,cx,cy or a file, given none")
    matrix = as_intrinsics(given, values.shape[::-1])
    inverse = np.linalg.inv(matrix)
    z = np.where(known, values, np.nan).astype(np.float64) / depth_scale
    rows, columns = (np.arange(length, dtype=np.float64) for length in values.shape)
    points = np.empty((3, *values.shape), np.float32)
    with np.errstate(over="ignore"):
        for axis, sign in zip(range(3), signs_of(CAMERA), strict=True):
            ray = inverse[axis, 0] * columns[None] + (inverse[axis, 1] * rows[:, None] + inverse[axis, 2])
            points[axis] = sign * (ray * z)
    return points, in_fractions(matrix, values.shape[::-1])


def _depth_values(depth, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Depth [H, W] of integers or floats, and the intrinsics in the same file."""
    beside = None
    if isinstance(depth, (str, os.PathLike)):
        if Path(depth).suffix.lower() in ARRAYS:
            found = read_arrays(depth, name, (*DEPTH, *INTRINSICS))
            beside = next((found.pop(key) for key in INTRINSICS if key in found), None)
            if not found:
                raise ValueError(f"{name}: expected one array, or one called 'depth', given intrinsics alone")
            values = next(iter(found.values()))
        else:
            with opened(depth, name) as picture:
                values = _depth_of_picture(picture, name)
    else:
        values = _depth_of_picture(depth, name) if isinstance(depth, Image.Image) else as_array(depth, name)
    if isinstance(values, np.ndarray):
        while values.ndim > 2 and values.shape[0] == 1:
            values = values[0]
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[..., 0]
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected integers or floats [H, W], given {array_kind(values)}")
    check_sides(values.shape[1], values.shape[0], name)
    return values, beside


def _depth_of_picture(picture: Image.Image, name: str) -> np.ndarray:
    load_pixels(picture, name, floats=True)
    if picture.mode == "F":
        return np.asarray(picture)
    if picture.mode in WIDE_MODES:
        return wide_values(picture, name)
    if picture.mode != "L":
        raise ValueError(f"{name}: expected a grey picture of 16 bits, or of floats, given Pillow's mode {picture.mode!r}")
    return np.asarray(picture)


def as_intrinsics(given, size: tuple[int, int]) -> np.ndarray:
    """The matrix float64 [3, 3] of a camera whose pictures are `size` (width, height), in pixels, the middle of the first at 0.

    given: as in `depth_as_points`. Fractions of width and height, which focal lengths below 10 and a middle between 0 and 1 are
    taken for, are multiplied, and a `Notice` says so. ValueError for anything else.
    """
    name = "intrinsics"
    if isinstance(given, (str, os.PathLike)):
        text = str(given)
        numbers = _numbers_of(text)
        if numbers is None:
            name = f"intrinsics {text!r}"
            numbers = _intrinsics_of_file(Path(given), name)
        given = numbers
    if isinstance(given, Mapping):
        given = _intrinsics_of_names(given, name)
    matrix = _as_matrix(given, name)
    width, height = size
    if _is_normalised(matrix):
        say(f"{name}: taken as fractions of width and height, as focal lengths are {matrix[0, 0]:g} and {matrix[1, 1]:g}")
        matrix = in_pixels(matrix, size)
    x, y = in_fractions(matrix, size)[:2, 2]
    if not (0.1 <= x <= 0.9 and 0.1 <= y <= 0.9):
        say(
            f"{name}: the camera's middle, ({matrix[0, 2]:g}, {matrix[1, 2]:g}), is not near that of the depth map, {width} x "
            f"{height} pixels; if they are those of another size, scale them"
        )
    return matrix


def _is_normalised(matrix: np.ndarray) -> bool:
    """By the smaller focal length, as of a narrow photo the other one is many heights or widths; or, as both are many through a
    telephoto lens, by the camera's middle, which no picture has within its first pixel."""
    focal, middle = np.diagonal(matrix)[:2], matrix[:2, 2]
    return bool(focal.min() < NORMALISED or (middle.min() > 0 and middle.max() < 1))


def _as_matrix(given, name: str) -> np.ndarray:
    """Intrinsics float64 [3, 3] of four numbers or a matrix, in whichever units they are. ValueError for anything else."""
    try:
        matrix = np.array(as_array(given, name), np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected fx, fy, cx, cy or a matrix [3, 3], given {type(given).__name__}") from error
    while matrix.ndim > 2 and len(matrix) == 1:
        matrix = matrix[0]
    if matrix.shape == (4,):
        fx, fy, cx, cy = matrix
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    elif matrix.shape in ((9,), (16,)):
        matrix = matrix.reshape(round(len(matrix) ** 0.5), -1)
    if matrix.shape in ((4, 4), (3, 4)):
        matrix = matrix[:3, :3]
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError(
            f"{name}: expected fx, fy, cx, cy or a matrix [3, 3] of finite numbers, given {np.array(given).tolist()}"
        )
    if matrix[2, :2].any() and not matrix[:2, 2].any():  # by columns, as Open3D writes it
        matrix = matrix.T
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or not np.array_equal(matrix[2], [0, 0, 1]) or matrix[1, 0] != 0:
        raise ValueError(
            f"{name}: expected [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] with focal lengths above 0, given {matrix.tolist()}"
        )
    return matrix


def _numbers_of(text: str) -> list[float] | None:
    """Four numbers with commas between, or None for another text."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None


def _intrinsics_of_file(path: Path, name: str):
    if path.suffix.lower() in ARRAYS:
        return read_array(path, name, INTRINSICS)
    try:
        check_is_file(path)
        with open(path, "rb") as file:
            text = file.read(MAX_TEXT + 1)
        if len(text) > MAX_TEXT:
            raise ValueError(f"it is longer than {MAX_TEXT} bytes")
        text = text.decode()
        if path.suffix.lower() == ".json":
            return parse_json(text, path.name)
        rows = [[float(part) for part in line.replace(",", " ").split()] for line in text.splitlines() if line.strip()]
        return rows[0] if len(rows) == 1 else np.array(rows)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected fx,fy,cx,cy or a file of them or of a matrix, cannot read it: {error}") from error


def _intrinsics_of_names(given: Mapping, name: str):
    """Four numbers or a matrix of what a JSON file may hold."""
    for key in INTRINSICS:
        if key in given:
            return _intrinsics_of_names(given[key], name) if isinstance(given[key], Mapping) else given[key]
    for keys in (("fx", "fy", "cx", "cy"), ("fx", "fy", "ppx", "ppy")):
        if all(key in given for key in keys):
            return [given[key] for key in keys]
    names = brief(", ".join(map(str, list(given)[:8])), 200)
    raise ValueError(f"{name}: expected fx, fy, cx and cy, or a matrix called K or intrinsics, given {names}")


def _check_points(points: np.ndarray, name: str) -> None:
    valid = np.isfinite(points).all(0)
    if not valid.any():
        raise ValueError(
            f"{name}: expected a finite point somewhere, given {valid.size} pixels that are unknown (NaN, infinite or 0)"
        )
    if valid.sum() > 1 and all(plane[valid].min() == plane[valid].max() for plane in points):
        first = [float(plane[valid][0]) for plane in points]
        raise ValueError(f"{name}: expected points that differ, given {first} in all {valid.sum()} known pixels")


def _unknown_as_nan(points: np.ndarray) -> np.ndarray:
    """Points [3, H, W] with NaN in all three of a pixel of which one is not finite; themselves where they are that."""
    unknown = ~np.isfinite(points).all(0)
    if np.isnan(points[:, unknown]).all():
        return points
    return np.where(unknown, np.float32(np.nan), points)


def _as_the_photo(points: np.ndarray, size: tuple[int, int], orientation: int, name: str) -> np.ndarray:
    """Points [3, H, W] turned as the photo was, if their shape fits it only as it lies in its file."""
    height, width = points.shape[1:]
    if orientation == UPRIGHT:
        _say_if_stretched((width, height), size, name)
        return points
    raw = size[::-1] if swaps_sides(orientation) else size
    if _same_shape((width, height), size):
        if raw == size:
            say(f"{name}: taken as upright, while the photo's file is {in_words(orientation)} by its EXIF data")
        return points
    if _same_shape((width, height), raw):
        say(f"{name}: {in_words(orientation)} as the photo is by its EXIF data, whose file's shape it has")
        return upright_points(points, orientation)
    _say_if_stretched((width, height), size, name)
    return points


def _say_if_stretched(given: tuple[int, int], size: tuple[int, int], name: str) -> None:
    """A notice for a map of another shape than the photo's, by more than depth models round their sides."""
    ratio = given[0] * size[1] / (given[1] * size[0])
    if max(ratio, 1 / ratio) > STRETCHED:
        say(
            f"{name}: is stretched over the photo, as {given[0]} x {given[1]} pixels are of another shape than its {size[0]} x "
            f"{size[1]}: it should be of all of the same photo"
        )


def _same_shape(given: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether two sizes are the same up to scale and a pixel of rounding."""
    return abs(given[0] * size[1] - given[1] * size[0]) <= max(*given, *size)
