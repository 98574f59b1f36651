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

from sam3d_tvm.frames import CAMERA, GLTF, OBJECT, OPENCV, OPENGL, Frame, matrix
from sam3d_tvm.mesh.bake import AS_IT_IS, Surface, TexturedMesh, bake
from sam3d_tvm.mesh.mesh import Mesh, save_mesh, save_mesh_scene
from sam3d_tvm.mesh.simplify import simplify
from sam3d_tvm.mesh.textured_files import save_mtl, save_textured_glb, save_textured_obj
from sam3d_tvm.overview import overview
from sam3d_tvm.photo.camera import PhotoCamera
from sam3d_tvm.png import save_png
from sam3d_tvm.pose import Pose
from sam3d_tvm.run_folder import RunFolder
from sam3d_tvm.splat.files import save_splat
from sam3d_tvm.splat.gaussians import Gaussians
from sam3d_tvm.splat.render import voxel_picture
from sam3d_tvm.splat.viewer import write_viewer
from sam3d_tvm.structure import STRUCTURE, Structure
from sparse_ops.deploy.files import write_bytes


@dataclass(frozen=True, eq=False)
class Result:
    """One object.

    coords: its voxels, int32 [N, 4] as (0, x, y, z) on a grid of `resolution`, the object being within -0.5..0.5 of
    `frames.OBJECT`. pose: where it is in `frames.CAMERA`. latents: float32 [N, C], what the decoders were given. gaussians,
    few_gaussians, mesh: those that were asked for. seconds: by stage. evaluations: by stage, where a sampler walked, how
    often its model was evaluated with the condition and without, and how many velocities were forecast, by these names. name:
    what the object is called in a scene. What is not known yet, while a run goes on, is None.

    photo: uint8 [h, w, 4], the photo and its mask for views.png. random_weights: whether the models have such.
    in_pointmap_units: whether there was a point map, whose units then are those of the pose; else they are of the object.
    camera: of the photo, where the depth model found it, or it came with the point map or depth.
    made_with: what decided the result, see `structure`. surface: how its mesh is written.
    """

    coords: np.ndarray
    resolution: int
    pose: Pose
    latents: np.ndarray | None
    gaussians: Gaussians | None
    few_gaussians: Gaussians | None
    mesh: Mesh | None
    seconds: dict[str, float] = field(default_factory=dict)
    evaluations: dict[str, dict[str, int]] = field(default_factory=dict)
    name: str = "object"
    photo: np.ndarray | None = None
    random_weights: bool = False
    in_pointmap_units: bool = False
    camera: PhotoCamera | None = None
    made_with: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    surface: Surface = AS_IT_IS
    _made: dict = field(default_factory=dict, repr=False)  # meshes that were simplified or baked, also by copies of this

    @property
    def structure(self) -> Structure:
        """What structure.safetensors holds of it."""
        return Structure(self.coords, self.resolution, self.pose, self.latents, self.made_with)

    @property
    def points(self) -> np.ndarray:
        """The middles of the voxels in the object's units, float32 [N, 3]."""
        return self.structure.points

    @property
    def written_mesh(self) -> Mesh:
        """The mesh as plain files have it: of no more triangles than `surface` asks for."""
        if self.surface.triangles is None:
            return self.mesh
        return self._once("simplified", lambda: simplify(self.mesh, self.surface.triangles))

    @property
    def textured(self) -> TexturedMesh:
        """The mesh with a texture from the Gaussians, baked when it is first asked for. ValueError as of `bake`, and for what
        was not decoded."""
        self._check_has(["textured.glb"])
        surface = self.surface
        return self._once("textured", lambda: bake(self.mesh, self.gaussians, surface.textured_triangles, surface.texture_size))

    @property
    def baked(self) -> TexturedMesh | None:
        """`textured`, if somebody asked for it."""
        return self._made.get(("textured", self.mesh, self.gaussians, self.surface))

    def _once(self, what: str, make: Callable[[], Any]) -> Any:
        key = (what, self.mesh, self.gaussians, self.surface)  # the first two are the same only as objects
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def in_scene(self) -> "Result":
        """The same with Gaussians and mesh where the pose puts them, in `frames.CAMERA`."""
        gaussians, few, mesh = self.gaussians, self.few_gaussians, self.mesh
        return replace(
            self,
            gaussians=None if gaussians is None else gaussians.transformed(self.pose),
            few_gaussians=None if few is None else few.transformed(self.pose),
            mesh=None if mesh is None else mesh.transformed(self.pose.matrix()[0]),
        )

    def save(
        self,
        folder: str | os.PathLike,
        formats: Sequence[str] = ("ply", "glb"),
        triangles: int | None = None,
        texture_size: int | None = None,
    ) -> list[Path]:
        """Writes a file for each of `formats`, pose.json, structure.safetensors and, if there is something to be seen, a
        picture: views.png, or voxels.png of the first stage alone. Each is written whole or not at all. Returns their paths.

        triangles, texture_size: in place of those of `surface`. ValueError for a format that was not decoded, and as `Surface`.
        """
        given = {"triangles": triangles, "texture_size": texture_size}
        surface = replace(self.surface, **{name: value for name, value in given.items() if value is not None})
        if surface != self.surface:
            return replace(self, surface=surface).save(folder, formats)
        check_formats(formats)
        formats = () if self.latents is None else tuple(formats)
        self._check_has(formats)
        return ResultFolder(RunFolder(folder), formats, self.surface).finish(self)

    def picture(self) -> Image.Image | None:
        """What views.png shows, or voxels.png of the first stage alone; None if there is nothing to be seen."""
        if self.latents is None:
            return voxel_picture(self.coords, self.points)
        return self.overview()

    def has_all(self, formats: Sequence[str]) -> bool:
        """Whether all is decoded that files of these formats hold."""
        return all(getattr(self, DECODED[model]) is not None for model in check_formats(formats))

    def overview(self) -> Image.Image | None:
        """What views.png shows; None if there is nothing to be seen."""
        gaussians = self.few_gaussians if self.gaussians is None else self.gaussians
        pose = self.pose if self.in_pointmap_units else None
        return overview(gaussians, self.mesh, self.photo, pose, self.random_weights, camera=self.camera)

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
                **({} if self.camera is None else self.camera.as_json()),
            },
            "matrices": matrices,
        }

    def _check_has(self, formats: Sequence[str]) -> None:
        """ValueError for a format of something that was not decoded."""
        for name in formats:
            if not self.has_all([name]):
                raise ValueError(f"formats: expected those that were asked for when generating, given {name!r}")


POSE, VIEWS, VOXELS_PICTURE = "pose.json", "views.png", "voxels.png"
SCENE_VIEWS = f"scene_{VIEWS}"
VOXELS, LATENTS = "voxels", "latents"  # what structure.safetensors goes up to

# Which part of a result a model decodes.
DECODED = {"slat_decoder_gs": "gaussians", "slat_decoder_gs_4": "few_gaussians", "slat_decoder_mesh": "mesh"}


@dataclass(frozen=True)
class Format:
    """A kind of file: the models that decode what it holds, the file's name, the axes of what it holds (None where nobody reads
    coordinates from it), how it is written for one object, and for the objects of a scene, whose file has "scene_" before its
    name and is in `frames.CAMERA`, unless its format has axes of its own.

    beside, beside_scene: further files that it needs, by name without "scene_", and how they are written. of: what of a surface
    decides what is in them. textured: whether they show a texture."""

    models: tuple[str, ...]
    file: str
    frame: Frame | None
    write: Callable[[Path, Result], None]
    write_scene: Callable[[Path, Sequence[Result]], None]
    beside: Mapping[str, Callable[[Path, Result], None]] = field(default_factory=dict)
    beside_scene: Mapping[str, Callable[[Path, Sequence[Result]], None]] = field(default_factory=dict)
    of: Callable[[Surface], str] = lambda surface: ""
    textured: bool = False

    @property
    def writers(self) -> dict[str, Callable[[Path, Result], None]]:
        """How all files of one object are written, by name; its own comes last."""
        return {**self.beside, self.file: self.write}

    @property
    def scene_writers(self) -> dict[str, Callable[[Path, Sequence[Result]], None]]:
        """How all files of a scene are written, by name; its own comes last."""
        return {f"scene_{name}": write for name, write in {**self.beside_scene, self.file: self.write_scene}.items()}


def _format(model: str, file: str, frame: Frame | None, write: Callable[[Path, Gaussians], None]) -> Format:
    """A format of one part of a result, whose parts of several objects are merged."""

    def write_scene(path: Path, results: Sequence[Result]) -> None:
        parts = [getattr(result.in_scene(), DECODED[model]) for result in results]
        write(path, type(parts[0]).merged(parts))

    return Format((model,), file, frame, lambda path, result: write(path, getattr(result, DECODED[model])), write_scene)


def _mesh_format(file: str, frame: Frame) -> Format:
    """A format of meshes, in which a scene keeps its objects apart where it can."""

    def write_scene(path: Path, results: Sequence[Result]) -> None:
        save_mesh_scene(path, [(result.name, result.written_mesh, result.pose.matrix()[0]) for result in results])

    return Format(
        ("slat_decoder_mesh",),
        file,
        frame,
        lambda path, result: save_mesh(path, result.written_mesh),
        write_scene,
        of=lambda surface: "" if surface.triangles is None else f"at most {surface.triangles} triangles",
    )


TEXTURE, MATERIALS = "textured.png", "textured.mtl"


def _textured_format(
    file: str,
    save: Callable[[Path, Sequence], None],
    beside: Mapping[str, Callable[[Path, Result], None]],
    beside_scene: Mapping[str, Callable[[Path, Sequence[Result]], None]],
) -> Format:
    """A format of textured meshes. The colours are those of the Gaussians."""
    return Format(
        ("slat_decoder_gs", "slat_decoder_mesh"),
        file,
        GLTF,
        lambda path, result: save(path, [("mesh", result.textured, None)]),
        lambda path, results: save(path, [(result.name, result.textured, result.pose.matrix()[0]) for result in results]),
        beside,
        beside_scene,
        lambda surface: f"at most {surface.textured_triangles} triangles, {surface.texture_size} pixels",
        textured=True,
    )


def _save_scene_materials(path: Path, results: Sequence[Result]) -> None:
    """The textures are those in the folders of the objects."""
    save_mtl(path, [f"object_{number}/{TEXTURE}" for number in range(1, len(results) + 1)])


FORMATS = {
    "ply": _format("slat_decoder_gs", "splat.ply", OBJECT, save_splat),
    "compressed.ply": _format("slat_decoder_gs", "splat.compressed.ply", OPENCV, save_splat),
    "splat": _format("slat_decoder_gs", "splat.splat", OPENCV, save_splat),
    "spz": _format("slat_decoder_gs", "splat.spz", OPENGL, save_splat),
    "html": _format("slat_decoder_gs", "splat.html", None, write_viewer),
    "ply4": _format("slat_decoder_gs_4", "splat_4.ply", OBJECT, save_splat),
    "glb": _mesh_format("mesh.glb", GLTF),
    "mesh.ply": _mesh_format("mesh.ply", OBJECT),
    "obj": _mesh_format("mesh.obj", GLTF),
    "stl": _mesh_format("mesh.stl", OBJECT),
    "textured.glb": _textured_format("textured.glb", save_textured_glb, {}, {}),
    "textured.obj": _textured_format(
        "textured.obj",
        save_textured_obj,
        {
            TEXTURE: lambda path, result: write_bytes(path, result.textured.png),
            MATERIALS: lambda path, result: save_mtl(path, [TEXTURE]),
        },
        {MATERIALS: _save_scene_materials},
    ),
}


def check_formats(formats: Sequence[str], models: Collection[str] | None = None) -> set[str]:
    """The models that decode what `formats` hold. ValueError for a format that is not known, or, given `models`, one that these
    do not decode."""
    if isinstance(formats, str):
        raise ValueError(f"formats: expected a list of names, given the string {formats!r}")
    known = {name: kind for name, kind in FORMATS.items() if models is None or set(kind.models) <= set(models)}
    if strange := [name for name in formats if name not in known]:
        lacking = sorted({model for name in strange if name in FORMATS for model in FORMATS[name].models} - set(models or ()))
        reason = f": the models were compiled without {', '.join(lacking)}, compile a checkpoint with it" if lacking else ""
        raise ValueError(f"formats: expected names among {', '.join(known)}, given {', '.join(map(str, strange))}{reason}")
    return {model for name in formats for model in known[name].models}


def save_scene(results: Sequence[Result], folder: str | os.PathLike, formats: Sequence[str] = ("ply", "glb")) -> list[Path]:
    """Every object in a folder of its own, and all of them in one file for each of `formats`, where their poses put them in
    `frames.CAMERA`."""
    run, written = RunFolder(folder), []
    for number, result in enumerate(results, 1):
        result._check_has(() if result.latents is None else formats)
        written += ResultFolder(run.below(f"object_{number}"), formats, result.surface).finish(result)
    return written + write_scene(run, results, formats)


def write_scene(run: RunFolder, results: Sequence[Result], formats: Sequence[str]) -> list[Path]:
    """The file of each of `formats` that holds all objects. Those of an earlier run that is taken up are kept, if they are of
    the same objects; others of it are removed."""
    files, of = _scene_files(results, formats), _scene_of(results)
    written = [run.write(file, lambda path, write=write: write(path, results), of) for file, write in files.items()]
    run.keep_objects([f"object_{number}" for number in range(1, len(results) + 1)])
    run.keep_only(list(files))
    return written


def lacks_scene(run: RunFolder, results: Sequence[Result], formats: Sequence[str]) -> bool:
    """Whether `write_scene` has something to write."""
    of = _scene_of(results)
    return not all(run.has(file, of) for file in _scene_files(results, formats))


def _scene_files(results: Sequence[Result], formats: Sequence[str]) -> dict[str, Callable[[Path, Sequence[Result]], None]]:
    """How files are written, by name; none after the first stage alone."""
    if any(result.latents is None for result in results):
        return {}
    found = {file: write for name in formats for file, write in FORMATS[name].scene_writers.items()}
    return found | ({SCENE_VIEWS: _save_scene_views} if found and results[0].camera is not None else {})


def _save_scene_views(path: Path, results: Sequence[Result]) -> None:
    """The photo with the masks of all objects, and them all from its camera and from around."""
    placed = [result.in_scene() for result in results]

    def merged(name: str) -> Any:
        parts = [getattr(result, name) for result in placed]
        return None if any(part is None for part in parts) else type(parts[0]).merged(parts)

    gaussians = next((found for found in map(merged, ("gaussians", "few_gaussians")) if found is not None), None)
    photo = None if results[0].photo is None else results[0].photo.copy()
    for result in results if photo is not None else ():
        np.maximum(photo[..., 3], result.photo[..., 3], out=photo[..., 3])
    picture = overview(
        gaussians, merged("mesh"), photo, None, results[0].random_weights, camera=results[0].camera, frame=CAMERA
    )
    if picture is not None:
        save_png(path, picture)


def _scene_of(results: Sequence[Result]) -> str:
    """Changes with the objects of a scene."""
    text = json.dumps([[result.made_with, vars(result.surface)] for result in results], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ResultFolder:
    """One object in a folder: call it with what is known while a run goes on, and it writes the files that are ready; `finish`
    writes the rest.

    Of an earlier run that is taken up again, `structure` is what there is, and `formats` are its own beside those asked for,
    but for meshes of another `surface`, which are written anew if they are asked for.
    """

    def __init__(self, run: RunFolder, formats: Sequence[str], surface: Surface = AS_IT_IS):
        self.run, self.surface = run, surface
        self.formats = [name for name in FORMATS if name in formats or self._has(name)]
        known = run.has(STRUCTURE, LATENTS) or run.has(STRUCTURE, VOXELS)
        self.structure = Structure.load(run.folder / STRUCTURE) if known else None

    @property
    def lacking(self) -> list[str]:
        """The formats whose files are not there, or all of them if the picture is not."""
        if not self.run.has(VIEWS, self._views_of):
            return self.formats
        return [name for name in self.formats if not self._has(name)]

    def _has(self, name: str) -> bool:
        """Whether all files of a format are there."""
        return all(self.run.has(file, FORMATS[name].of(self.surface)) for file in FORMATS[name].writers)

    @property
    def _views_of(self) -> str:
        return ", ".join(sorted(check_formats(self.formats)))

    def __call__(self, result: Result) -> list[Path]:
        """Writes what is ready, and returns the paths of it."""
        self.run.note_evaluations(result.evaluations)
        written = [self.run.write(STRUCTURE, result.structure.save, VOXELS if result.latents is None else LATENTS)]
        pose = (json.dumps(result.pose_as_json(), indent=1) + "\n").encode()
        written.append(self.run.write(POSE, lambda path: write_bytes(path, pose)))
        for name in self.formats:
            if self._has(name) or result.has_all([name]):
                of = FORMATS[name].of(self.surface)
                for file, write in FORMATS[name].writers.items():
                    written.append(self.run.write(file, lambda path, write=write: write(path, result), of))
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
