"""glTF 2.0 as one binary file (.glb): meshes with colours at their vertices or with a texture, each in a node of its own.

Axes are glTF's, y up. What has a texture gets a matte material. What has colours gets none: readers then multiply the default
material, which is white, by COLOR_0, and trimesh, which drops the colours of whatever has a material, keeps them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

VERSION, JSON_CHUNK, BINARY_CHUNK = 2, 0x4E4F534A, 0x004E4942
FLOAT, UNSIGNED_INT = 5126, 5125
VERTEX_BUFFER, INDEX_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP, CLAMP = 9729, 9987, 33071
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3"}
MATTE = {"metallicFactor": 0.0, "roughnessFactor": 1.0}


@dataclass(frozen=True, eq=False)
class Node:
    """A named mesh: vertices float32 [V, 3], their normals float32 [V, 3], faces int32 [F, 3]; linear colours float32 [V, 3]
    from 0 to 1, or None; uv float32 [V, 2] from the top left of `texture`, the bytes of a PNG file, or None for both; matrix
    [4, 4], of column vectors, from the mesh into the scene, or None where they are the same."""

    name: str
    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    colors: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: bytes | None = None
    matrix: np.ndarray | None = None


def glb_bytes(nodes: Sequence[Node]) -> bytes:
    """The file; equal nodes give equal bytes."""
    binary = _Binary()
    tree = {
        "asset": {"version": "2.0", "generator": "sam3d-tvm"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": [_node(number, node) for number, node in enumerate(nodes)],
        "meshes": [],
    }
    for node in nodes:
        attributes = {
            "POSITION": binary.attribute(node.vertices, with_bounds=True),
            "NORMAL": binary.attribute(_never_zero(node.normals)),
        }
        if node.colors is not None:
            attributes["COLOR_0"] = binary.attribute(node.colors)
        primitive = {"attributes": attributes, "indices": binary.indices(node.faces)}
        if node.texture is not None:
            attributes["TEXCOORD_0"] = binary.attribute(node.uv)
            primitive["material"] = _material(tree, binary.view(node.texture))
        tree["meshes"].append({"name": node.name, "primitives": [primitive]})
    tree |= {"accessors": binary.accessors, "bufferViews": binary.views, "buffers": [{"byteLength": binary.length}]}
    chunks = _chunk(JSON_CHUNK, json.dumps(tree, separators=(",", ":")).encode(), b" ")
    chunks += _chunk(BINARY_CHUNK, b"".join(binary.parts), b"\0")
    return b"glTF" + _uint32(VERSION, 12 + len(chunks)) + chunks


class _Binary:
    """The numbers of a file, and what describes them."""

    def __init__(self):
        self.parts, self.views, self.accessors, self.length = [], [], [], 0

    def view(self, data: bytes, target: int | None = None) -> int:
        """The number of a new view of `data`, which begins at a multiple of 4."""
        view = {"buffer": 0, "byteOffset": self.length, "byteLength": len(data)}
        self.views.append(view if target is None else view | {"target": target})
        self.parts += [data, bytes(-len(data) % 4)]
        self.length += len(data) + len(self.parts[-1])
        return len(self.views) - 1

    def attribute(self, values: np.ndarray, with_bounds: bool = False) -> int:
        """The number of a new accessor of float32 [V, 2 or 3]."""
        values = np.ascontiguousarray(values, "<f4")
        accessor = {"bufferView": self.view(values.tobytes(), VERTEX_BUFFER), "componentType": FLOAT}
        accessor |= {"count": len(values), "type": KINDS[values.shape[1]]}
        if with_bounds:
            accessor |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def indices(self, faces: np.ndarray) -> int:
        data = np.ascontiguousarray(faces, "<u4").tobytes()
        accessor = {"bufferView": self.view(data, INDEX_BUFFER), "componentType": UNSIGNED_INT}
        self.accessors.append(accessor | {"count": faces.size, "type": KINDS[1]})
        return len(self.accessors) - 1


def _node(number: int, node: Node) -> dict:
    found = {"mesh": number, "name": node.name}
    if node.matrix is not None:
        found["matrix"] = np.asarray(node.matrix, np.float64).T.reshape(-1).tolist()  # by columns
    return found


def _material(tree: dict, view: int) -> int:
    """The number of a new matte material with the picture of a buffer view."""
    for name in ("materials", "textures", "images"):
        tree.setdefault(name, [])
    tree["samplers"] = [{"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP, "wrapS": CLAMP, "wrapT": CLAMP}]
    tree["images"].append({"bufferView": view, "mimeType": "image/png"})
    tree["textures"].append({"sampler": 0, "source": len(tree["images"]) - 1})
    texture = {"index": len(tree["textures"]) - 1}
    tree["materials"].append({"pbrMetallicRoughness": {"baseColorTexture": texture, **MATTE}})
    return len(tree["materials"]) - 1


def _never_zero(normals: np.ndarray) -> np.ndarray:
    """Normals, up where they are 0: glTF asks for unit vectors."""
    return np.where(normals.any(1, keepdims=True), normals, np.float32([0, 1, 0]))


def _chunk(kind: int, data: bytes, padding: bytes) -> bytes:
    data += padding * (-len(data) % 4)
    return _uint32(len(data), kind) + data


def _uint32(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)
