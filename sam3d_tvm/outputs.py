"""What a pipeline returns, and the files that it becomes."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam3d_tvm.frames import CAMERA, GLTF, OBJECT, Frame
from sam3d_tvm.mesh.mesh import Mesh, save_mesh
from sam3d_tvm.overview import overview
from sam3d_tvm.png import save_png
from sam3d_tvm.pose import Pose
from sam3d_tvm.run_folder import RunFolder
from sam3d_tvm.splat.gaussians import Gaussians, save_splat
from sam3d_tvm.splat.render import voxel_picture
from sam3d_tvm.splat.viewer import write_viewer
from sam3d_tvm.structure import STRUCTURE, Structure
from sparse_ops.deploy.files import write_bytes


@dataclass(frozen=True, eq=False)
class Result:
    """One object.

    coords: its voxels, int32 [N, 4] as (0, x, y, z) on a grid of `resolution`, the object being within -0.5..0.5 of
    `frames.OBJECT`. pose: where it is in `frames.CAMERA`. latents: float32 [N, C], what the decoders were given. gaussians,
    few_gaussians, mesh: those that were asked for. seconds: by stage. name: what the object is called in a scene. made_with:
    what decided the result, see `structure`. What is not known yet, while a run goes on, is None.
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
    made_with: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def structure(self) -> Structure:
        """What structure.safetensors holds of it."""
        return Structure(self.coords, self.resolution, self.pose, self.latents, self.made_with)

    @property
    def points(self) -> np.ndarray:
        """The middles of the voxels in the object's units, float32 [N, 3]."""
        return self.structure.points

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
        formats = () if self.latents is None else tuple(formats)
        check_formats(formats)
        self._check_has(formats)
        return ResultFolder(RunFolder(folder), formats).finish(self)

    def picture(self) -> Image.Image | None:
        """What views.png shows, or voxels.png of the first stage alone; None if there is nothing to be seen."""
        if self.latents is None:
            return voxel_picture(self.coords, self.points)
        return overview(self.few_gaussians if self.gaussians is None else self.gaussians, self.mesh)

    def has_all(self, formats: Sequence[str]) -> bool:
        """Whether all is decoded that files of these formats hold."""
        return all(getattr(self, DECODED[model]) is not None for model in check_formats(formats))

    def _check_has(self, formats: Sequence[str]) -> None:
        """ValueError for a format of something that was not decoded."""
        for name in formats:
            if not self.has_all([name]):
                raise ValueError(f"formats: expected those that were asked for when generating, given {name!r}")


POSE, VIEWS, VOXELS_PICTURE = "pose.json", "views.png", "voxels.png"
VOXELS, LATENTS = "voxels", "latents"  # what structure.safetensors goes up to

# Which part of a result a model decodes.
DECODED = {"slat_decoder_gs": "gaussians", "slat_decoder_gs_4": "few_gaussians", "slat_decoder_mesh": "mesh"}


@dataclass(frozen=True)
class Format:
    """A kind of file: the models that decode what it holds, the file's name and the axes of what it holds, how it is written
    for one object, and for the objects of a scene, whose file has "scene_" before its name and is in `frames.CAMERA`."""

    models: tuple[str, ...]
    file: str
    frame: Frame
    write: Callable[[Path, Result], None]
    write_scene: Callable[[Path, Sequence[Result]], None]


def _format(model: str, file: str, frame: Frame, write: Callable[[Path, Gaussians | Mesh], None]) -> Format:
    """A format of one part of a result, whose parts of several objects are merged."""

    def write_scene(path: Path, results: Sequence[Result]) -> None:
        parts = [getattr(result.in_scene(), DECODED[model]) for result in results]
        write(path, type(parts[0]).merged(parts))

    return Format((model,), file, frame, lambda path, result: write(path, getattr(result, DECODED[model])), write_scene)


FORMATS = {
    "ply": _format("slat_decoder_gs", "splat.ply", OBJECT, save_splat),
    "html": _format("slat_decoder_gs", "splat.html", OBJECT, write_viewer),
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
    run, written = RunFolder(folder), []
    for number, result in enumerate(results, 1):
        result._check_has(() if result.latents is None else formats)
        written += ResultFolder(run.below(f"object_{number}"), formats).finish(result)
    return written + write_scene(run, results, formats)


def write_scene(run: RunFolder, results: Sequence[Result], formats: Sequence[str]) -> list[Path]:
    """The file of each of `formats` that holds all objects. Those of an earlier run that is taken up are kept, if they are of
    the same objects; others of it are removed."""
    files, of = _scene_files(results, formats), _scene_of(results)
    written = [run.write(file, lambda path, kind=kind: kind.write_scene(path, results), of) for file, kind in files.items()]
    run.keep_objects([f"object_{number}" for number in range(1, len(results) + 1)])
    run.keep_only(list(files))
    return written


def lacks_scene(run: RunFolder, results: Sequence[Result], formats: Sequence[str]) -> bool:
    """Whether `write_scene` has something to write."""
    of = _scene_of(results)
    return not all(run.has(file, of) for file in _scene_files(results, formats))


def _scene_files(results: Sequence[Result], formats: Sequence[str]) -> dict[str, "Format"]:
    """Formats by the names of their files; none after the first stage alone."""
    if any(result.latents is None for result in results):
        return {}
    return {f"scene_{FORMATS[name].file}": FORMATS[name] for name in formats}


def _scene_of(results: Sequence[Result]) -> str:
    """Changes with the objects of a scene."""
    text = json.dumps([result.made_with for result in results], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ResultFolder:
    """One object in a folder: call it with what is known while a run goes on, and it writes the files that are ready; `finish`
    writes the rest.

    Of an earlier run that is taken up again, `structure` is what there is, and `formats` are its own beside those asked for.
    """

    def __init__(self, run: RunFolder, formats: Sequence[str]):
        self.run = run
        self.formats = [name for name, kind in FORMATS.items() if name in formats or run.has(kind.file)]
        known = run.has(STRUCTURE, LATENTS) or run.has(STRUCTURE, VOXELS)
        self.structure = Structure.load(run.folder / STRUCTURE) if known else None

    @property
    def lacking(self) -> list[str]:
        """The formats whose files are not there, or all of them if the picture is not."""
        if not self.run.has(VIEWS, self._views_of):
            return self.formats
        return [name for name in self.formats if not self.run.has(FORMATS[name].file)]

    @property
    def _views_of(self) -> str:
        return ", ".join(sorted(check_formats(self.formats)))

    def __call__(self, result: Result) -> list[Path]:
        """Writes what is ready, and returns the paths of it."""
        written = [self.run.write(STRUCTURE, result.structure.save, VOXELS if result.latents is None else LATENTS)]
        pose = (json.dumps(pose_as_json(result.pose), indent=1) + "\n").encode()
        written.append(self.run.write(POSE, lambda path: write_bytes(path, pose)))
        for name in self.formats:
            kind = FORMATS[name]
            if self.run.has(kind.file) or result.has_all([name]):
                written.append(self.run.write(kind.file, lambda path, kind=kind: kind.write(path, result)))
        return written

    def finish(self, result: Result) -> list[Path]:
        """Writes the rest. Returns the paths of all files of the object."""
        written = self(result)
        file, of = (VOXELS_PICTURE, "") if result.latents is None else (VIEWS, self._views_of)
        if self.run.has(file, of):
            written.append(self.run.folder / file)
        elif (result.latents is None or result.has_all(self.formats)) and (picture := result.picture()) is not None:
            written.append(self.run.write(file, lambda path: save_png(path, picture), of))
        self.run.keep_only([path.name for path in written])
        return written


def pose_as_json(pose: Pose) -> dict[str, Any]:
    """The pose of one object. Raw values: rotation (w, x, y, z), translation and scale; points as rows are multiplied by scale,
    then by the rotation matrix from the right, then moved. And for every file that one object becomes the matrix that takes
    columns (x, y, z, 1) of its coordinates into `frames.CAMERA`."""
    raw = {name: getattr(pose, name)[0].tolist() for name in ("rotation", "translation", "scale")}
    matrices = {kind.file: pose.into_camera(kind.frame)[0].tolist() for kind in FORMATS.values()}
    return {
        **raw,
        "convention": "matrices are right-handed and act on columns: camera = matrix @ (x, y, z, 1); the rotation (w, x, y, z) "
        "and scale as they are act on rows: camera = (point * scale) @ rotation_matrix + translation",
        "camera": CAMERA.words,
        "matrices": matrices,
    }
