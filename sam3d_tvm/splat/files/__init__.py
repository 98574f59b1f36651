"""Files of Gaussian splats, a format a file, and the table of all: by the name of a file when writing, by what is in it when
reading. docs/frames.md says what the axes of each are.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sam3d_tvm.frames import OBJECT, OPENCV, OPENGL, Frame
from sam3d_tvm.splat.files import compressed_ply, ply, splat, spz
from sam3d_tvm.splat.gaussians import Gaussians
from sparse_ops.deploy.files import write_bytes


@dataclass(frozen=True)
class SplatFormat:
    """A format of splats: how its files end; the axes that they are in, or None for those of the Gaussians, which the file then
    says; how Gaussians become the bytes of a file; how a file is read."""

    suffix: str
    frame: Frame | None
    encode: Callable[[Gaussians], bytes]
    read: Callable[[Path], Gaussians]


# The longest suffix first: .compressed.ply ends in .ply, too.
SPLAT_FORMATS = {
    "compressed.ply": SplatFormat(".compressed.ply", OPENCV, compressed_ply.encode, compressed_ply.read),
    "ply": SplatFormat(".ply", None, ply.encode, ply.read),
    "splat": SplatFormat(".splat", OPENCV, splat.encode, splat.read),
    "spz": SplatFormat(".spz", OPENGL, spz.encode, spz.read),
}

UPWARDS = {"z": OBJECT, "y": OPENGL, "-y": OPENCV}  # the axes of a file of which it is only known what is up

_CONVERT = "splat-transform of PlayCanvas makes a .ply file of it, which can be shown"
_MESH = "which holds a mesh, not a splat: open it in Blender or a viewer of meshes"
# What people have in place of a splat: by first bytes, then by the end of the name.
_OTHERS_BY_START = {
    b"glTF": _MESH,
    b"\x89PNG": "which is a picture",
    b"\xff\xd8\xff": "which is a picture",
    b"PK\x03\x04": f"which is an archive, as .sog and .usdz are: {_CONVERT}",
    b"NGSP": "which is an .spz file of version 4 or later: save it as version 2 or 3",
    b"<!doctype": "which is a page: open it in a browser",
    b"<!DOCTYPE": "which is a page: open it in a browser",
    b"<html": "which is a page: open it in a browser",
    b"version https://git-lfs": "which points to a file that Git LFS did not fetch: run `git lfs pull`",
}
_OTHERS_BY_SUFFIX = {
    **dict.fromkeys((".glb", ".gltf", ".obj", ".stl", ".usd", ".usda", ".usdc", ".usdz", ".fbx"), _MESH),
    ".ksplat": f"which is a file of GaussianSplats3D: {_CONVERT}",
    ".sog": f"which is a file of PlayCanvas: {_CONVERT}",
    ".lcc": f"which is a file of XGRIDS: {_CONVERT}",
    ".safetensors": "which holds arrays: the splat of the same object is splat.ply",
    ".html": "which is a page: open it in a browser",
}
_START = 64  # bytes that tell formats apart


def save_splat(path: str | os.PathLike, gaussians: Gaussians) -> None:
    """Writes Gaussians in the format that the end of `path` says, in the axes of the format, whole or not at all.

    Equal Gaussians give equal bytes. ValueError for another end, for a path that cannot be a file, and for positions that a
    format cannot hold.
    """
    found = _by_suffix(path)
    if found is None:
        ends = ", ".join(kind.suffix for kind in SPLAT_FORMATS.values())
        raise ValueError(f"path: expected a file that ends in one of {ends}, given {str(path)!r}")
    write_bytes(path, found.encode(gaussians if found.frame is None else gaussians.in_frame(found.frame)))


def load_splat(path: str | os.PathLike, frame: Frame | None = None) -> Gaussians:
    """The Gaussians of a file in one of `SPLAT_FORMATS`, whatever its name, as they are in the file.

    Their frame is `frame` if given; else what a .ply file of this package says of itself, the frame of the format, or
    `frames.OBJECT` for other .ply files. Raises ValueError for a file that is missing, of another kind, which is then called by
    its name, cut short or wrong, and as `Gaussians`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: expected a .ply file or another splat, given {str(path)!r}, which is none")
    found = _by_content(path)
    try:
        gaussians = found.read(path)
    except ValueError as error:
        if str(error).startswith("path:"):
            raise
        raise ValueError(f"path: expected a {found.suffix} file of Gaussians, given {str(path)!r}: {error}") from error
    return replace(gaussians, frame=frame or found.frame or gaussians.frame)


def _by_suffix(path: str | os.PathLike) -> SplatFormat | None:
    name = Path(path).name.lower()
    return next((kind for kind in SPLAT_FORMATS.values() if name.endswith(kind.suffix)), None)


def _by_content(path: Path) -> SplatFormat:
    """The format of a file; ValueError for another, with what can be done about it."""
    with open(path, "rb") as file:
        start = file.read(_START)
    if start.startswith(b"ply"):
        return SPLAT_FORMATS["compressed.ply" if compressed_ply.recognise(path) else "ply"]
    if start.startswith(b"\x1f\x8b"):
        return SPLAT_FORMATS["spz"]
    named = _by_suffix(path)
    known = "a .ply file or another splat (.compressed.ply, .splat, .spz)" if named is None else f"a {named.suffix} file"
    for other, words in _OTHERS_BY_START.items():
        if start.startswith(other):
            raise ValueError(f"path: expected {known}, given {str(path)!r}, {words}")
    if named is None:
        words = _OTHERS_BY_SUFFIX.get(path.suffix.lower(), "which is none of these")
        raise ValueError(f"path: expected {known}, given {str(path)!r}, {words}")
    return named
