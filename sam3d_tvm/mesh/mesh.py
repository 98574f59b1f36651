"""A triangle mesh with attributes at its vertices, and writing it as .glb, .ply, .obj or .stl."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sam3d_tvm.checks import check_choice, check_finite
from sam3d_tvm.frames import CAMERA, GLTF, OBJECT, matrix, rotation
from sam3d_tvm.mesh.gltf import Node, glb_bytes
from sam3d_tvm.mesh.obj import Object, obj_bytes
from sparse_ops.deploy.files import write_bytes

SUFFIXES = (".glb", ".ply", ".obj", ".stl")
TURNED = (".glb", ".obj")  # from `frames.OBJECT` to `frames.GLTF`
Z_UP_TO_Y_UP = rotation(OBJECT, GLTF).T  # points as rows are multiplied by it from the right


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices float32 [V, 3]; faces int32 [F, 3], the three different vertices of each, counterclockwise seen from outside;
    vertex attributes float32 [V, 6] from 0 to 1, of which the first three are a colour (red, green, blue in sRGB) and the
    others what the network says of the normal, or None. There may be none of either.

    Raises ValueError for other shapes, dtypes or values.
    """

    vertices: np.ndarray
    faces: np.ndarray
    vertex_attributes: np.ndarray | None = None

    def __post_init__(self):
        _check("vertices", self.vertices, np.float32, (None, 3))
        check_finite("vertices", self.vertices)
        _check("faces", self.faces, np.int32, (None, 3))
        first, last = self.faces.min(initial=0), self.faces.max(initial=-1)
        if first < 0 or last >= len(self.vertices):
            raise ValueError(f"faces: expected vertices from 0 to {len(self.vertices) - 1}, given {first} to {last}")
        twice = (self.faces == np.roll(self.faces, 1, 1)).any(1)
        if twice.any():
            row = np.flatnonzero(twice)[0]
            raise ValueError(f"faces: expected three different vertices, given {self.faces[row].tolist()} in row {row}")
        if self.vertex_attributes is not None:
            _check("vertex_attributes", self.vertex_attributes, np.float32, (len(self.vertices), 6))
            low, high = self.vertex_attributes.min(initial=0), self.vertex_attributes.max(initial=1)
            if not (low >= 0 and high <= 1):  # nor NaN
                raise ValueError(f"vertex_attributes: expected values from 0 to 1, given {low} to {high}")

    @property
    def face_normals(self) -> np.ndarray:
        """Unit normals of the faces, float32 [F, 3]; 0 for a face without area."""
        return _unit(self._face_areas()).astype(np.float32)

    @property
    def vertex_normals(self) -> np.ndarray:
        """Unit normals of the vertices, float32 [V, 3]: means over the faces around, by area; 0 where these cancel."""
        areas, owners = self._face_areas(), self.faces.reshape(-1)
        sums = [np.bincount(owners, np.repeat(column, 3), len(self.vertices)) for column in areas.T]
        return _unit(np.stack(sums, 1)).astype(np.float32)

    @property
    def colors(self) -> np.ndarray | None:
        """Colours of the vertices in sRGB, uint8 [V, 3], or None without attributes."""
        if self.vertex_attributes is None:
            return None
        return np.rint(255 * self.vertex_attributes[:, :3]).astype(np.uint8)

    @property
    def is_watertight(self) -> bool:
        """Whether every directed edge of a face has exactly one opposite. A mesh without faces is."""
        starts = self.faces.astype(np.int64)
        ends = np.roll(starts, -1, 1)
        there = np.sort((starts * len(self.vertices) + ends).reshape(-1))
        back = np.sort((ends * len(self.vertices) + starts).reshape(-1))
        return bool((np.diff(there) > 0).all() and np.array_equal(there, back))

    def transformed(self, matrix: np.ndarray) -> "Mesh":
        """The mesh with every vertex, as a row (x, y, z, 1), multiplied by `matrix` [4, 4] from the right: what
        `pose.Pose.matrix` gives for one object takes it into its scene. Attributes stay as they are.

        Raises ValueError for another shape, values that are not finite, a last column that is not (0, 0, 0, 1), and a matrix
        that does not keep orientation, which would turn the mesh inside out.
        """
        matrix = np.asarray(matrix)
        if matrix.dtype.kind not in "iuf" or matrix.shape != (4, 4):
            raise ValueError(f"matrix: expected numbers [4, 4], given {matrix.dtype} {list(matrix.shape)}")
        check_finite("matrix", matrix)
        matrix = matrix.astype(np.float64)
        if (matrix[:, 3] != [0, 0, 0, 1]).any():
            raise ValueError(f"matrix: expected (0, 0, 0, 1) as its last column, given {matrix[:, 3].tolist()}")
        if not (volume := np.linalg.det(matrix[:3, :3])) > 0:
            raise ValueError(f"matrix: expected a determinant above 0, given {volume:g}")
        moved = self.vertices @ matrix[:3, :3] + matrix[3, :3]
        return replace(self, vertices=moved.astype(np.float32))

    @classmethod
    def merged(cls, parts: Sequence["Mesh"]) -> "Mesh":
        """All of `parts` as one mesh, in their order. ValueError if there are none, or only some of them have attributes."""
        attributes = [part.vertex_attributes for part in parts]
        if not attributes or any((found is None) != (attributes[0] is None) for found in attributes):
            raise ValueError(f"parts: expected meshes that all have attributes or all have none, given {len(parts)} meshes")
        starts = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
        return cls(
            np.concatenate([part.vertices for part in parts]),
            np.concatenate([part.faces + np.int32(start) for part, start in zip(parts, starts, strict=True)]),
            None if attributes[0] is None else np.concatenate(attributes),
        )

    def _face_areas(self) -> np.ndarray:
        """Normals of the faces, of twice their area as length, float64 [F, 3]."""
        a, b, c = self.vertices.astype(np.float64)[self.faces.T]
        return np.cross(b - a, c - a)


def save_mesh(path: str | os.PathLike, mesh: Mesh) -> None:
    """Writes a mesh, with the normals of its vertices and their colours if it has any, as the suffix of `path` says.

    .ply and .stl, binary: in the object's own axes, z up; .ply with colours uint8 in sRGB (and an alpha of 255), .stl without.
    .glb and .obj: from z up to y up, (x, y, z) to (x, z, -y), as programs that read them expect. Colours of .glb are float32 in
    linear light, as glTF 2.0 says, and come without a material, with which trimesh would drop them; those of .obj are in sRGB
    behind the position of a vertex. Equal meshes give equal bytes; the file is written whole or not at all.

    Raises ValueError for another suffix, for a mesh without faces, of which glTF has none, and as `files.atomic_write`.
    """
    suffix = _check_writable(path, mesh)
    if suffix in TURNED:
        _write(path, [("mesh", mesh, None)], Z_UP_TO_Y_UP, GLTF.words)
    else:
        _write_flat(path, mesh)


def save_mesh_scene(path: str | os.PathLike, objects: Sequence[tuple[str, Mesh, np.ndarray]]) -> None:
    """Writes several meshes where their poses put them, in the axes of the scene, whatever the suffix of `path`.

    objects: the name of each, its mesh, and the matrix [4, 4] by which rows (x, y, z, 1) of it are multiplied from the right,
    as `pose.Pose.matrix` gives it. .glb: a node for each with its name, the pose as its matrix, and the mesh as `save_mesh`
    writes it. .obj: an object for each with its name. .ply, .stl: one mesh.

    Raises ValueError for no objects, and as `save_mesh` and `Mesh.transformed`.
    """
    if not objects:
        raise ValueError("objects: expected at least one, given none")
    for _, mesh, _ in objects:
        suffix = _check_writable(path, mesh)
    if suffix == ".glb":
        _write(path, objects, Z_UP_TO_Y_UP, GLTF.words)
    elif suffix == ".obj":
        _write(path, [(name, mesh.transformed(pose), None) for name, mesh, pose in objects], np.eye(3), CAMERA.words)
    else:
        _write_flat(path, Mesh.merged([mesh.transformed(pose) for _, mesh, pose in objects]))


def _check_writable(path: str | os.PathLike, mesh: Mesh) -> str:
    """The suffix of `path`, in lower case. ValueError for one that is not known, and a mesh without faces."""
    suffix = Path(path).suffix.lower()
    check_choice("the suffix of path", suffix, SUFFIXES)
    if len(mesh.faces) == 0:
        raise ValueError("mesh: expected at least one face to write, given none")
    return suffix


def _write_flat(path: str | os.PathLike, mesh: Mesh) -> None:
    """A .ply or .stl file of a mesh as it stands."""
    import trimesh  # takes a second

    normals = mesh.vertex_normals
    made = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=normals, vertex_colors=mesh.colors, process=False)
    if Path(path).suffix.lower() == ".ply":
        write_bytes(path, made.export(file_type="ply", vertex_normal=True))
    else:
        write_bytes(path, made.export(file_type="stl"))


def _write(
    path: str | os.PathLike, objects: Sequence[tuple[str, Mesh, np.ndarray | None]], turn: np.ndarray, axes: str
) -> None:
    """A .glb or .obj file of named meshes, whose vertices as rows are multiplied by `turn` from the right. A pose, the matrix
    of rows from `frames.OBJECT` into the scene or None, becomes that of a node, from `frames.GLTF`. `axes`: what .obj says."""
    if Path(path).suffix.lower() == ".obj":
        parts = [
            Object(name, mesh.vertices @ turn, mesh.vertex_normals @ turn, mesh.faces, _srgb(mesh)) for name, mesh, _ in objects
        ]
        write_bytes(path, obj_bytes(parts, f"{axes}; colours, behind the positions, in sRGB"))
    else:
        parts = [
            Node(
                name,
                mesh.vertices @ turn,
                mesh.vertex_normals @ turn,
                mesh.faces,
                None if mesh.vertex_attributes is None else linear(_srgb(mesh)),
                matrix=None if pose is None else pose.T.astype(np.float64) @ matrix(GLTF, OBJECT),
            )
            for name, mesh, pose in objects
        ]
        write_bytes(path, glb_bytes(parts))


def _srgb(mesh: Mesh) -> np.ndarray | None:
    return None if mesh.vertex_attributes is None else mesh.vertex_attributes[:, :3]


def linear(colors: np.ndarray) -> np.ndarray:
    """sRGB to linear light, both 0 to 1, float32: IEC 61966-2-1."""
    colors = colors.astype(np.float64)
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, 3] at length 1, or 0 where they are 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _check(name: str, array: np.ndarray, dtype, shape: tuple) -> None:
    """ValueError unless `array` is a numpy array of this dtype and shape, in which None is any size."""
    wanted = f"{np.dtype(dtype)} [{', '.join('any' if size is None else str(size) for size in shape)}]"
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: expected {wanted}, given {type(array).__name__}")
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        raise ValueError(f"{name}: expected {wanted}, given {array.dtype} {list(array.shape)}")
