"""Wavefront .obj: text, an object of its own for every mesh, with colours behind the positions of its vertices or a texture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Object:
    """A named mesh: vertices [V, 3] and their normals [V, 3], float32; faces int32 [F, 3]; colours in sRGB [V, 3] from 0 to 1,
    or None; uv float32 [V, 2] from the bottom left of the texture, or None; the name of its material, or None."""

    name: str
    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    colors: np.ndarray | None = None
    uv: np.ndarray | None = None
    material: str | None = None


def obj_bytes(objects: Sequence[Object], comment: str, library: str | None = None) -> bytes:
    """The file. Numbers of vertices go on from object to object. `library`: the .mtl file of the materials."""
    parts = [f"# {comment}\n", f"mtllib {library}\n" if library else ""]
    first = 1
    for item in objects:
        colored = item.vertices if item.colors is None else np.hstack([item.vertices, item.colors])
        parts += [f"o {' '.join(item.name.split())}\n", _lines("v", "%.9g", colored)]
        parts += [_lines("vn", "%.6g", item.normals), "" if item.uv is None else _lines("vt", "%.9g", item.uv)]
        parts += [f"usemtl {item.material}\n" if item.material else ""]
        corner = "%d//%d" if item.uv is None else "%d/%d/%d"
        numbers = np.repeat(item.faces.reshape(-1).astype(np.int64) + first, corner.count("%")).reshape(len(item.faces), -1)
        parts.append(_lines("f", corner, numbers, corner.count("%")))
        first += len(item.vertices)
    return "".join(parts).encode()


def mtl_bytes(pictures: Mapping[str, str]) -> bytes:
    """A file of matte materials, by name, with the colours of a picture each, whose path is from the folder of the file."""
    matte = "newmtl {}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {}\n"
    return "\n".join(matte.format(name, picture) for name, picture in pictures.items()).encode()


def _lines(keyword: str, form: str, rows: np.ndarray, numbers: int = 1) -> str:
    """A line for each of `rows` [N, C]: the keyword and C / numbers times `form`, which takes that many numbers."""
    line = " ".join([keyword, *[form] * (rows.shape[1] // numbers)]) + "\n"
    return line * len(rows) % tuple((rows + 0).reshape(-1).tolist())  # no -0
