"""Files of textured meshes: .glb with a matte material, and .obj with its .mtl and .png; one mesh, or the objects of a scene.

As plain meshes, a single object is in `frames.GLTF`; a scene is in the axes of its poses, and its .glb has a node an object.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam3d_tvm.frames import CAMERA, GLTF, OBJECT, matrix
from sam3d_tvm.mesh.bake import TexturedMesh
from sam3d_tvm.mesh.gltf import Node, glb_bytes
from sam3d_tvm.mesh.mesh import Z_UP_TO_Y_UP
from sam3d_tvm.mesh.obj import Object, mtl_bytes, obj_bytes
from sparse_ops.deploy.files import write_bytes

# The name of each, its mesh, and the matrix [4, 4] by which rows (x, y, z, 1) of it are multiplied from the right, or None.
Placed = tuple[str, TexturedMesh, np.ndarray | None]


def save_textured_glb(path: str | os.PathLike, objects: Sequence[Placed]) -> None:
    """Writes a .glb file with the textures in it. A pose becomes the matrix of a node. Equal objects give equal bytes."""
    nodes = [
        Node(
            name,
            mesh.vertices @ Z_UP_TO_Y_UP,
            mesh.vertex_normals @ Z_UP_TO_Y_UP,
            mesh.faces,
            uv=mesh.uv,
            texture=mesh.png,
            matrix=None if pose is None else pose.T.astype(np.float64) @ matrix(GLTF, OBJECT),
        )
        for name, mesh, pose in objects
    ]
    write_bytes(path, glb_bytes(nodes))


def save_textured_obj(path: str | os.PathLike, objects: Sequence[Placed]) -> None:
    """Writes an .obj file that asks for the .mtl of the same name beside it, see `save_mtl`."""
    parts = []
    for number, (name, mesh, pose) in enumerate(objects, 1):
        placed = mesh.mesh if pose is None else mesh.mesh.transformed(pose)
        turn = Z_UP_TO_Y_UP if pose is None else np.eye(3)
        vertices, normals = ((values @ turn)[mesh.corners] for values in (placed.vertices, placed.vertex_normals))
        parts.append(Object(name, vertices, normals, mesh.faces, uv=mesh.uv * [1, -1] + [0, 1], material=_material(number)))
    axes = GLTF.words if all(pose is None for _, _, pose in objects) else CAMERA.words
    write_bytes(path, obj_bytes(parts, axes, Path(path).with_suffix(".mtl").name))


def save_mtl(path: str | os.PathLike, pictures: Sequence[str]) -> None:
    """Writes the .mtl file of as many objects as there are pictures, whose paths are from its folder."""
    write_bytes(path, mtl_bytes({_material(number): picture for number, picture in enumerate(pictures, 1)}))


def _material(number: int) -> str:
    return f"surface_{number}"
