"""What a pipeline returns, and the files that it becomes."""

import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sam3d_tvm.mesh.mesh import Mesh, save_mesh
from sam3d_tvm.overview import overview
from sam3d_tvm.png import save_png
from sam3d_tvm.pose import Pose
from sam3d_tvm.splat.gaussians import Gaussians, save_splat
from sam3d_tvm.splat.render import voxel_picture
from sam3d_tvm.splat.viewer import write_viewer
from sparse_ops.deploy.files import save_safetensors, write_bytes


@dataclass(frozen=True, eq=False)
class Result:
    """One object.

    coords: its voxels, int32 [N, 4] as (0, x, y, z) on a grid of `resolution`, the object being within -0.5..0.5. pose: where
    it is in its scene. latents: float32 [N, C], what the decoders were given. gaussians, few_gaussians, mesh: those that were
    asked for. seconds: by stage.
    """

    coords: np.ndarray
    resolution: int
    pose: Pose
    latents: np.ndarray | None
    gaussians: Gaussians | None
    few_gaussians: Gaussians | None
    mesh: Mesh | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def points(self) -> np.ndarray:
        """The middles of the voxels in the object's units, float32 [N, 3]."""
        return (self.coords[:, 1:].astype(np.float32) + np.float32(0.5)) / np.float32(self.resolution) - np.float32(0.5)

    def in_scene(self) -> "Result":
        """The same with Gaussians and mesh where the pose puts them."""
        return Result(
            self.coords,
            self.resolution,
            self.pose,
            self.latents,
            None if self.gaussians is None else self.gaussians.transformed(self.pose),
            None if self.few_gaussians is None else self.few_gaussians.transformed(self.pose),
            None if self.mesh is None else self.mesh.transformed(self.pose.matrix()[0]),
            self.seconds,
        )

    def save(self, folder: str | os.PathLike, formats: Sequence[str] = ("ply", "glb")) -> list[Path]:
        """Writes a file for each of `formats`, pose.json, structure.safetensors and, if there is something to be seen, a
        picture: views.png, or voxels.png of the first stage alone. Each is written whole or not at all. Returns their paths.

        ValueError for a format that was not decoded.
        """
        folder, written = Path(folder), []
        formats = () if self.latents is None else tuple(formats)
        check_formats(formats)
        for name in formats:
            if getattr(self, FORMATS[name].attribute) is None:
                raise ValueError(f"formats: expected those that were asked for when generating, given {name!r}")
        for name in formats:
            file = folder / FORMATS[name].file
            FORMATS[name].write(file, getattr(self, FORMATS[name].attribute))
            written.append(file)
        arrays = {"coords": self.coords, "points": self.points}
        if self.latents is not None:
            arrays["latents"] = self.latents
        save_safetensors(folder / "structure.safetensors", arrays, {"resolution": str(self.resolution)})
        write_bytes(folder / "pose.json", (json.dumps(pose_as_json(self.pose), indent=1) + "\n").encode())
        written += [folder / "structure.safetensors", folder / "pose.json"]
        if self.latents is None:
            picture, file = voxel_picture(self.coords, self.points), folder / "voxels.png"
        else:
            picture, file = (
                overview(self.few_gaussians if self.gaussians is None else self.gaussians, self.mesh),
                folder / "views.png",
            )
        if picture is not None:
            save_png(file, picture)
            written.append(file)
        return written


@dataclass(frozen=True)
class Format:
    """A kind of file: the model that decodes what it holds, the part of a `Result`, the file's name, how it is written."""

    model: str
    attribute: str
    file: str
    write: Callable[[Path, Gaussians | Mesh], None]


FORMATS = {
    "ply": Format("slat_decoder_gs", "gaussians", "splat.ply", save_splat),
    "html": Format("slat_decoder_gs", "gaussians", "splat.html", write_viewer),
    "ply4": Format("slat_decoder_gs_4", "few_gaussians", "splat_4.ply", save_splat),
    "glb": Format("slat_decoder_mesh", "mesh", "mesh.glb", save_mesh),
    "mesh.ply": Format("slat_decoder_mesh", "mesh", "mesh.ply", save_mesh),
}


def check_formats(formats: Sequence[str], models: Collection[str] | None = None) -> set[str]:
    """The models that decode what `formats` hold. ValueError for a format that is not known, or, given `models`, one that none
    of them decodes."""
    if isinstance(formats, str):
        raise ValueError(f"formats: expected a list of names, given the string {formats!r}")
    known = {name: kind for name, kind in FORMATS.items() if models is None or kind.model in models}
    if strange := [name for name in formats if name not in known]:
        raise ValueError(f"formats: expected names among {', '.join(known)}, given {', '.join(map(str, strange))}")
    return {known[name].model for name in formats}


def save_scene(results: Sequence[Result], folder: str | os.PathLike, formats: Sequence[str] = ("ply", "glb")) -> list[Path]:
    """Every object in a folder of its own, and all of them in one file for each of `formats`, where their poses put them."""
    folder, written = Path(folder), []
    for number, result in enumerate(results, 1):
        written += result.save(folder / f"object_{number}", formats)
    placed = [result.in_scene() for result in results if result.latents is not None]
    for name in formats if placed else ():
        parts = [getattr(result, FORMATS[name].attribute) for result in placed]
        file = folder / f"scene_{FORMATS[name].file}"
        FORMATS[name].write(file, type(parts[0]).merged(parts))
        written.append(file)
    return written


def pose_as_json(pose: Pose) -> dict[str, list[float]]:
    """Rotation (w, x, y, z), translation and scale of one object: points as rows are multiplied by scale, then by the rotation
    matrix from the right, then moved."""
    return {name: getattr(pose, name)[0].tolist() for name in ("rotation", "translation", "scale")}
