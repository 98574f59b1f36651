"""What a pipeline returns, and the files that it becomes."""

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam3d_tvm.frames import CAMERA, GLTF, OBJECT, OPENCV, OPENGL, Frame, matrix
from sam3d_tvm.mesh.mesh import Mesh, save_mesh
from sam3d_tvm.overview import overview
from sam3d_tvm.png import save_png
from sam3d_tvm.pose import Pose
from sam3d_tvm.splat.files import save_splat
from sam3d_tvm.splat.gaussians import Gaussians
from sam3d_tvm.splat.render import voxel_picture
from sam3d_tvm.splat.viewer import write_viewer
from sparse_ops.deploy.files import save_safetensors, write_bytes


@dataclass(frozen=True, eq=False)
class Result:
    """One object.

    coords: its voxels, int32 [N, 4] as (0, x, y, z) on a grid of `resolution`, the object being within -0.5..0.5 of
    `frames.OBJECT`. pose: where it is in `frames.CAMERA`. latents: float32 [N, C], what the decoders were given. gaussians,
    few_gaussians, mesh: those that were asked for. seconds: by stage. name: what the object is called in a scene.

    photo: uint8 [h, w, 4], the photo and its mask for views.png. random_weights: whether the models have such.
    in_pointmap_units: whether there was a point map, whose units then are those of the pose; else they are of the object.
    """

    coords: np.ndarray
    resolution: int
    pose: Pose
    latents: np.ndarray | None
    gaussians: Gaussians | None
    few_gaussians: Gaussians | None
    mesh: Mesh | None
    seconds: dict[str, float] = field(default_factory=dict)
    name: str = "object"
    photo: np.ndarray | None = None
    random_weights: bool = False
    in_pointmap_units: bool = False

    @property
    def points(self) -> np.ndarray:
        """The middles of the voxels in the object's units, float32 [N, 3]."""
        return (self.coords[:, 1:].astype(np.float32) + np.float32(0.5)) / np.float32(self.resolution) - np.float32(0.5)

    def in_scene(self) -> "Result":
        """The same with Gaussians and mesh where the pose puts them, in `frames.CAMERA`."""
        gaussians, few, mesh = self.gaussians, self.few_gaussians, self.mesh
        return replace(
            self,
            gaussians=None if gaussians is None else gaussians.transformed(self.pose),
            few_gaussians=None if few is None else few.transformed(self.pose),
            mesh=None if mesh is None else mesh.transformed(self.pose.matrix()[0]),
        )

    def save(self, folder: str | os.PathLike, formats: Sequence[str] = ("ply", "glb")) -> list[Path]:
        """Writes a file for each of `formats`, pose.json, structure.safetensors and, if there is something to be seen, a
        picture: views.png, or voxels.png of the first stage alone. Each is written whole or not at all. Returns their paths.

        ValueError for a format that was not decoded.
        """
        folder, written = Path(folder), []
        formats = () if self.latents is None else tuple(formats)
        check_formats(formats)
        self._check_has(formats)
        for name in formats:
            FORMATS[name].write(file := folder / FORMATS[name].file, self)
            written.append(file)
        arrays = {"coords": self.coords, "points": self.points}
        if self.latents is not None:
            arrays["latents"] = self.latents
        save_safetensors(folder / "structure.safetensors", arrays, {"resolution": str(self.resolution)})
        write_bytes(folder / "pose.json", (json.dumps(self.pose_as_json(), indent=1) + "\n").encode())
        written += [folder / "structure.safetensors", folder / "pose.json"]
        if self.latents is None:
            picture, file = voxel_picture(self.coords, self.points), folder / "voxels.png"
        else:
            picture, file = self.overview(), folder / "views.png"
        if picture is not None:
            save_png(file, picture)
            written.append(file)
        return written

    def overview(self) -> Image.Image | None:
        """What views.png shows; None if there is nothing to be seen."""
        gaussians = self.few_gaussians if self.gaussians is None else self.gaussians
        return overview(gaussians, self.mesh, self.photo, self.pose if self.in_pointmap_units else None, self.random_weights)

    def pose_as_json(self) -> dict[str, Any]:
        """What pose.json holds: the raw values of the pose, and for every file that one object may become the matrix that takes
        columns (x, y, z, 1) of its coordinates into `frames.CAMERA`; see docs/frames.md."""
        frames = {"structure.safetensors": OBJECT, **{kind.file: kind.frame for kind in FORMATS.values()}}
        matrices = {file: self.pose.into_camera(frame)[0].tolist() for file, frame in frames.items() if frame is not None}
        return {
            **{name: getattr(self.pose, name)[0].tolist() for name in ("rotation", "translation", "scale")},
            "convention": "The rotation is a unit quaternion (w, x, y, z); with scale and translation it acts on points of "
            "splat.ply as rows, as in PyTorch3D: camera = (point * scale) @ rotation_matrix + translation. The matrices are "
            "4x4, by rows, right-handed, and act on columns, on coordinates of the file that they are named by: "
            "camera = matrix @ (x, y, z, 1).",
            "camera": {
                "axes": CAMERA.words,
                "units": "those of the point map"
                if self.in_pointmap_units
                else "of the object, whose true size is not known without a point map",
                "to_opencv": matrix(CAMERA, OPENCV).tolist(),
                "to_opengl": matrix(CAMERA, OPENGL).tolist(),
            },
            "matrices": matrices,
        }

    def _check_has(self, formats: Sequence[str]) -> None:
        """ValueError for a format of something that was not decoded."""
        for name in formats:
            if any(getattr(self, DECODED[model]) is None for model in FORMATS[name].models):
                raise ValueError(f"formats: expected those that were asked for when generating, given {name!r}")


# Which part of a result a model decodes.
DECODED = {"slat_decoder_gs": "gaussians", "slat_decoder_gs_4": "few_gaussians", "slat_decoder_mesh": "mesh"}


@dataclass(frozen=True)
class Format:
    """A kind of file: the models that decode what it holds, the file's name, the axes of what it holds (None where nobody reads
    coordinates from it), how it is written for one object, and for the objects of a scene, whose file has "scene_" before its
    name and is in `frames.CAMERA`, unless its format has axes of its own."""

    models: tuple[str, ...]
    file: str
    frame: Frame | None
    write: Callable[[Path, Result], None]
    write_scene: Callable[[Path, Sequence[Result]], None]


def _format(model: str, file: str, frame: Frame | None, write: Callable[[Path, Gaussians | Mesh], None]) -> Format:
    """A format of one part of a result, whose parts of several objects are merged."""

    def write_scene(path: Path, results: Sequence[Result]) -> None:
        parts = [getattr(result.in_scene(), DECODED[model]) for result in results]
        write(path, type(parts[0]).merged(parts))

    return Format((model,), file, frame, lambda path, result: write(path, getattr(result, DECODED[model])), write_scene)


FORMATS = {
    "ply": _format("slat_decoder_gs", "splat.ply", OBJECT, save_splat),
    "compressed.ply": _format("slat_decoder_gs", "splat.compressed.ply", OPENCV, save_splat),
    "splat": _format("slat_decoder_gs", "splat.splat", OPENCV, save_splat),
    "spz": _format("slat_decoder_gs", "splat.spz", OPENGL, save_splat),
    "html": _format("slat_decoder_gs", "splat.html", None, write_viewer),
    "ply4": _format("slat_decoder_gs_4", "splat_4.ply", OBJECT, save_splat),
    "glb": _format("slat_decoder_mesh", "mesh.glb", GLTF, save_mesh),
    "mesh.ply": _format("slat_decoder_mesh", "mesh.ply", OBJECT, save_mesh),
}


def check_formats(formats: Sequence[str], models: Collection[str] | None = None) -> set[str]:
    """The models that decode what `formats` hold. ValueError for a format that is not known, or, given `models`, one that these
    do not decode."""
    if isinstance(formats, str):
        raise ValueError(f"formats: expected a list of names, given the string {formats!r}")
    known = {name: kind for name, kind in FORMATS.items() if models is None or set(kind.models) <= set(models)}
    if strange := [name for name in formats if name not in known]:
        raise ValueError(f"formats: expected names among {', '.join(known)}, given {', '.join(map(str, strange))}")
    return {model for name in formats for model in known[name].models}


def save_scene(results: Sequence[Result], folder: str | os.PathLike, formats: Sequence[str] = ("ply", "glb")) -> list[Path]:
    """Every object in a folder of its own, and all of them in one file for each of `formats`, where their poses put them in
    `frames.CAMERA`."""
    folder, written = Path(folder), []
    for number, result in enumerate(results, 1):
        written += result.save(folder / f"object_{number}", formats)
    decoded = [result for result in results if result.latents is not None]
    for name in formats if decoded else ():
        FORMATS[name].write_scene(file := folder / f"scene_{FORMATS[name].file}", decoded)
        written.append(file)
    return written
