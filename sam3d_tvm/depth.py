"""The depth model on a photo: its point map for the pipeline, and alone, as files for other programs.

estimator = DepthEstimator.from_file("model.pt")       # compiles once; needs torch that once
found = estimator("photo.jpg")
found.points, found.depth, found.intrinsics            # see `moge.infer.DepthMap`
save_depth("out", found, "photo.jpg")
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plyfile
import tvm

from sam3d_tvm.artifacts import (
    Artifacts,
    CheckpointSource,
    DepthModelSource,
    OnCompile,
    Source,
    compile_one,
    default_folder,
)
from sam3d_tvm.frames import OPENCV
from sam3d_tvm.models import MODELS
from sam3d_tvm.models.moge.infer import LEVELS, DepthMap, check_fov, infer
from sam3d_tvm.photo.field_of_view import fov_x_of_photo
from sam3d_tvm.photo.images import Picture, load_colours
from sam3d_tvm.photo.pointmaps import SEEN, PointMap, signs_of
from sam3d_tvm.png import save_png
from sam3d_tvm.presets import preset_source
from sam3d_tvm.run_folder import check_free
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.files import atomic_write, write_bytes

DEPTH_MODEL = "depth_model"
EXIF = "exif"  # a field of view: that of the photo's EXIF data
FULL = 255  # what stands for 1 in a photo
_FRACTIONS = (np.arange(FULL + 1) / FULL).astype(np.float32)  # divided in float64
NOTHING: OnCompile = lambda name, done, total: None  # noqa: E731
POINTS, CLOUD, PICTURE, CAMERA = "points.npz", "points.ply", "depth.png", "intrinsics.json"
UNKNOWN = (255, 255, 255)  # the colour of depth that is not known
SHOWN = (1, 99)  # percentiles of inverse depth that the ends of the colour map are
# Turbo by polynomials of the fifth degree, red, green and blue from the lowest power up (A. Mikhailov, Turbo, an improved
# rainbow colormap for visualization, Google AI Blog, 2019), without its dark ends: blue is far, red is near.
ENDS = 0.08, 0.95
TURBO = (
    (0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943),
    (0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604),
    (0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973),
)


class DepthEstimator:
    """A depth model that is compiled, and what it makes of photos. Make one with one of the `from_` methods."""

    def __init__(self, component: Component, config):
        self.model = MODELS[DEPTH_MODEL].open(component, config)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        artifacts: str | os.PathLike | None = None,
        *,
        precision: str = "float32",
        target: tvm.target.Target | None = None,
        on_model: OnCompile = NOTHING,
    ) -> "DepthEstimator":
        """Of the file of a published model, its folder, or that in the cache of a hub; compiled into the folder `artifacts`,
        by default one in the user's cache, unless that was done before. Other options as of `Pipeline.from_checkpoint`.

        Raises ValueError for a file that is missing, truncated or holds code, and for parameters that do not fit.
        """
        return cls._compiled(DepthModelSource(path), artifacts, precision, target, on_model)

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | os.PathLike,
        artifacts: str | os.PathLike | None = None,
        *,
        depth_model: str | os.PathLike | None = None,
        precision: str = "float32",
        target: tvm.target.Target | None = None,
        on_model: OnCompile = NOTHING,
    ) -> "DepthEstimator":
        """That of a checkpoint, in the artifacts of its pipeline. ValueError as `Pipeline.from_checkpoint`, and for a depth
        model that is not there."""
        source = CheckpointSource(folder, (), depth_model)
        if source.config.depth_model is None:
            raise ValueError(source.missing.get(DEPTH_MODEL, f"checkpoint {str(folder)!r}: it names no depth model"))
        return cls._compiled(source, artifacts, precision, target, on_model)

    @classmethod
    def from_preset(
        cls,
        name: str = "random-tiny",
        artifacts: str | os.PathLike | None = None,
        *,
        seed: int = 0,
        precision: str = "float32",
        target: tvm.target.Target | None = None,
        on_model: OnCompile = NOTHING,
    ) -> "DepthEstimator":
        """One of random weights, in the artifacts of `Pipeline.from_preset`, which see."""
        return cls._compiled(preset_source(name, seed, depth_model=True), artifacts, precision, target, on_model)

    @classmethod
    def from_artifacts(
        cls, folder: str | os.PathLike, *, precision: str | None = None, target: tvm.target.Target | None = None
    ) -> "DepthEstimator":
        """That of a pipeline that was compiled before. ValueError as `Artifacts`, for one without a depth model, and where
        another precision or kind of target is asked for."""
        found = Artifacts(folder)
        found.check_made_for(precision, target)
        if found.config.depth_model is None:
            raise ValueError(f"artifacts {str(folder)!r}: they were compiled without a depth model")
        return cls(found.load(DEPTH_MODEL), found.config.depth_model)

    @classmethod
    def _compiled(cls, source: Source, artifacts, precision: str, target, on_model: OnCompile) -> "DepthEstimator":
        folder = Path(artifacts or default_folder(source.label(precision, target)))
        return cls(compile_one(source, folder, DEPTH_MODEL, precision, target, on_model), source.config.depth_model)

    def __call__(self, image: Picture, fov: float | str | None = None, resolution_level: float = LEVELS) -> DepthMap:
        """The points of a photo as it is seen: a file as in `images.load_image`, or uint8 [H, W, 3] or [H, W, 4], or Pillow's.

        fov: the angle of view across it in degrees, or "exif" for that of its EXIF data; by default the model finds it.
        resolution_level: 0 to 9, from fast to exact. Raises ValueError as `images.load_image`, `fov_of` and `moge.infer.infer`.
        """
        return look(self.model, load_colours(image), fov_of(fov, image), resolution_level)


def check_view(fov: float | str | None) -> None:
    """ValueError unless a field of view is an angle in degrees between 0 and 180, "exif", or None."""
    if fov != EXIF:
        try:
            check_fov(fov)
        except ValueError as error:
            raise ValueError(f"fov: expected degrees above 0 and below 180, or {EXIF}, given {fov!r}") from error


def fov_of(fov: float | str | None, image: Picture) -> float | None:
    """The angle across a photo as it is seen, in degrees; None if it is to be found by the model. ValueError as `check_view`,
    and as `fov_x_of_photo` where the EXIF data does not say."""
    check_view(fov)
    return fov_x_of_photo(image) if fov == EXIF else fov


def look(model, rgb: np.ndarray, fov_x: float | None, resolution_level: float = LEVELS) -> DepthMap:
    """What `model`, a `moge.run.DepthModel`, makes of a photo uint8 [H, W, 3 or 4], of whose pixels the colours alone count:
    points where the model puts them, as SAM-3D-Objects takes them."""
    image = np.stack([_FRACTIONS[rgb[..., channel]] for channel in range(3)])
    return infer(model, image, fov_x=fov_x, resolution_level=resolution_level, force_projection=False)


def point_map(model, rgb: np.ndarray, fov_x: float | None) -> PointMap:
    """The same as the pipeline takes it."""
    found = look(model, rgb, fov_x)
    return PointMap(found.pointmap, found.camera.intrinsics)


def save_depth(folder: str | os.PathLike, found: DepthMap, image: Picture) -> list[Path]:
    """Writes what a photo shows, each file whole or not at all, and returns their paths.

    points.npz: `points` float32 [H, W, 3] and `depth` [H, W], NaN where the model sees no surface; `mask` bool [H, W];
    `intrinsics` float32 [3, 3] in fractions of width and height; the pipeline takes it back, as point map or depth. points.ply:
    a point with its colour for each pixel that has one. depth.png: `depth_picture`. intrinsics.json: `PhotoCamera.as_json`. All
    points are in the axes `OPENCV`: x right, y down, z away. ValueError for a folder in the way of a file, and a photo of
    another size than that of `found`.
    """
    folder, rgb = Path(folder), load_colours(image)
    if (given := rgb.shape[1::-1]) != found.size:
        sizes = [f"{width} x {height}" for width, height in (found.size, given)]
        raise ValueError(f"image: expected the photo that was looked at, of {sizes[0]} pixels, given one of {sizes[1]}")
    check_files_free(folder)
    writers: dict[str, Callable[[Path], None]] = {
        POINTS: lambda path: _save_points(path, found),
        CLOUD: lambda path: _save_cloud(path, found, rgb),
        PICTURE: lambda path: save_png(path, depth_picture(found)),
        CAMERA: lambda path: write_bytes(path, _camera_as_json(found)),
    }
    for name, write in writers.items():
        write(folder / name)
    return [folder / name for name in writers]


def check_files_free(folder: str | os.PathLike) -> None:
    """ValueError if a folder is where a file of `save_depth` is to be written."""
    check_free(Path(folder), (POINTS, CLOUD, PICTURE, CAMERA))


def depth_picture(found: DepthMap) -> np.ndarray:
    """Inverse depth in colours, uint8 [H, W, 3]: red is near, blue is far, white is not known."""
    known = found.mask & np.isfinite(found.depth) & (found.depth > 0)
    picture = np.full((*known.shape, 3), UNKNOWN, np.uint8)
    if known.any():
        nearness = 1 / found.depth[known].astype(np.float64)
        far, near = np.percentile(nearness, SHOWN)
        place = np.clip((nearness - far) / (near - far), 0, 1) if near > far else np.full(nearness.shape, 0.5)
        place = ENDS[0] + (ENDS[1] - ENDS[0]) * place
        channels = [np.polynomial.polynomial.polyval(place, powers) for powers in TURBO]
        picture[known] = np.rint(np.clip(np.stack(channels, -1), 0, 1) * FULL).astype(np.uint8)
    return picture


def _save_points(path: Path, found: DepthMap) -> None:
    points, depth = (np.where(np.isfinite(array), array, np.float32(np.nan)) for array in (found.points, found.depth))
    seen = np.int8(signs_of(OPENCV))
    with atomic_write(path) as file:
        arrays = {"points": points, "depth": depth, "mask": found.mask, "intrinsics": found.intrinsics, SEEN: seen}
        np.savez(file, **arrays)


def _save_cloud(path: Path, found: DepthMap, rgb: np.ndarray) -> None:
    known = np.isfinite(found.points).all(-1)
    points, colours = found.points[known], rgb[known]
    names = [*((axis, "<f4") for axis in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))]
    rows = np.empty(len(points), names)
    for index, (axis, colour) in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
        rows[axis], rows[colour] = points[:, index], colours[:, index]
    comments = [f"axes: {OPENCV.words}"]
    data = plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")], byte_order="<", comments=comments)
    with atomic_write(path) as file:
        data.write(file)


def _camera_as_json(found: DepthMap) -> bytes:
    return (json.dumps(found.camera.as_json(), indent=1) + "\n").encode()
