"""The .ply files of 3D Gaussian splatting: every number as float32, scales as logarithms, opacities as logits.

The axes are those of the Gaussians. Where these are not `frames.OBJECT`, a comment in the header names them, and Gaussians of a
scene have the number of their object as one more property, `object`; other programs pass over both.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement, PlyParseError

from sam3d_tvm.frames import FRAMES, OBJECT, Frame
from sam3d_tvm.reading import check_ply, open_clipped
from sam3d_tvm.splat.gaussians import COLUMNS, Gaussians

NORMALS = ("nx", "ny", "nz")  # zero, and not needed when reading
OBJECT_NUMBER = "object"  # the property of vertices
FRAME_COMMENT = "sam3d-tvm frame:"


def encode(gaussians: Gaussians) -> bytes:
    """A file, binary and little-endian, whose element `vertex` has `COLUMNS` as float32, and `object` as int32 in a scene."""
    columns = gaussians.columns()
    table = np.zeros(len(columns), [(name, "<f4") for name in COLUMNS] + [(OBJECT_NUMBER, "<i4")])
    for name, column in zip(COLUMNS, columns.T, strict=True):
        table[name] = column
    if gaussians.objects is None:
        table = np.ascontiguousarray(columns, "<f4").view([(name, "<f4") for name in COLUMNS])[:, 0]
    else:
        table[OBJECT_NUMBER] = gaussians.objects
    return write([PlyElement.describe(table, "vertex")], comments(gaussians.frame))


def read(path: Path) -> Gaussians:
    """ASCII or binary, with normals, spherical harmonics of higher degree and other elements or not, which are not read.

    Raises ValueError for what is no PLY file, cut short or without a column, and as `Gaussians`.
    """
    ply = parse(path)
    if "vertex" not in ply:
        raise ValueError(f"path: expected a .ply file with an element 'vertex', given {str(path)!r} without it")
    vertex = ply["vertex"].data
    names = [name for name in COLUMNS if name not in NORMALS]
    if missing := [name for name in names if name not in vertex.dtype.names]:
        kind = "" if "f_dc_0" in vertex.dtype.names else _kind_of(ply)
        raise ValueError(f"path: expected a .ply file of Gaussians, given {str(path)!r} without {', '.join(missing)}{kind}")
    objects = [OBJECT_NUMBER] if OBJECT_NUMBER in vertex.dtype.names else []
    if lists := [name for name in names + objects if vertex.dtype[name].kind not in "iuf"]:
        raise ValueError(f"path: expected a number as {', '.join(lists)} of a Gaussian, given {str(path)!r} with lists")
    with np.errstate(over="ignore"):  # `Gaussians` refuses what is infinite
        table = np.stack([vertex[name].astype(np.float32) for name in names], 1)  # [N, 14]
    return Gaussians(
        *(table[:, :3], table[:, 3:6], table[:, 6], table[:, 7:10], table[:, 10:]),
        frame=frame_of(ply) or OBJECT,
        objects=vertex[OBJECT_NUMBER] if objects and vertex.dtype[OBJECT_NUMBER].kind in "iu" else None,
    )


def comments(frame: Frame) -> list[str]:
    """What the header says of axes; nothing of those of an object, whose files are as upstream's."""
    return [] if frame == OBJECT else [f"{FRAME_COMMENT} {frame.name} ({frame.words})"]


def frame_of(ply: PlyData) -> Frame | None:
    """The frame that the header names; None if it names none that is known."""
    for comment in ply.comments:
        if (match := re.match(rf"{FRAME_COMMENT} (\w+)", comment)) and match[1] in FRAMES:
            return FRAMES[match[1]]
    return None


def parse(path: Path) -> PlyData:
    """ValueError for what is no PLY file, or is cut short."""
    try:
        check_ply(path, path.name)
        with open_clipped(path) as file:
            return PlyData.read(file)
    except (PlyParseError, ValueError, OSError, OverflowError, MemoryError) as error:
        raise ValueError(f"path: expected a .ply file, given {str(path)!r}: {error}") from error


def write(elements: Sequence[PlyElement], words: Sequence[str]) -> bytes:
    """A binary file, little-endian."""
    data = io.BytesIO()
    PlyData(list(elements), byte_order="<", comments=list(words)).write(data)
    return data.getvalue()


def _kind_of(ply: PlyData) -> str:
    """What a file without colours of Gaussians is, and what to do."""
    if "face" in ply or "tristrips" in ply:
        return ": it holds a mesh, which Blender and viewers of meshes open"
    return ": it holds points without Gaussians, which viewers of point clouds open"
