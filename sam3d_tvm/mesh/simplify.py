"""Fewer triangles: quadric edge collapses by fast-simplification (Garland and Heckbert, 1997), with attributes carried over."""

import threading

import numpy as np

from sam3d_tvm.checks import check_size
from sam3d_tvm.mesh.mesh import Mesh

LEAST_TRIANGLES = 4  # of a closed mesh
AGGRESSIVENESS = 7.0  # the library's own, whose passes accept growing errors: smaller ones take longer and look alike

_lock = threading.Lock()  # the library keeps its mesh in globals


def check_triangles(triangles: int) -> None:
    """ValueError unless it is an integer of at least 4."""
    check_size("triangles", triangles, LEAST_TRIANGLES)


def simplify(mesh: Mesh, triangles: int) -> Mesh:
    """`mesh` with about `triangles` faces, never more; as it is where it has no more than that.

    A vertex has the mean attributes of those that became it. Collapses may fold two faces onto each other, back to back: such
    pairs are taken out, which keeps a watertight mesh watertight but where the library made edges of more than two faces;
    `Mesh.is_watertight` tells. Some shapes cannot be made of so few triangles, and keep more. Equal meshes give equal results.

    Raises ValueError for fewer than 4 triangles, and a mesh of which nothing would be left.
    """
    check_triangles(triangles)
    if len(mesh.faces) <= triangles:
        return mesh
    import fast_simplification

    with _lock:
        points, faces, collapses = fast_simplification.simplify(
            mesh.vertices, mesh.faces, target_count=triangles, agg=AGGRESSIVENESS, return_collapses=True
        )
        if mesh.vertex_attributes is not None:
            points, faces, owners = fast_simplification.replay_simplification(mesh.vertices, mesh.faces, collapses)
    attributes = None
    if mesh.vertex_attributes is not None:
        known = owners >= 0
        counts = np.bincount(owners[known], minlength=len(points))
        sums = [np.bincount(owners[known], column[known], len(points)) for column in mesh.vertex_attributes.T]
        attributes = (np.stack(sums, 1) / np.maximum(counts, 1)[:, None]).astype(np.float32)
    faces = _without_folds(np.asarray(faces, np.int64).reshape(-1, 3))
    if len(faces) == 0:
        raise ValueError(f"triangles: expected enough to keep the shape, given {triangles}, of which nothing is left")
    used, faces = np.unique(faces, return_inverse=True)
    return Mesh(
        np.asarray(points, np.float32)[used],
        faces.reshape(-1, 3).astype(np.int32),
        None if attributes is None else np.clip(attributes[used], 0, 1),
    )


def without_cavities(mesh: Mesh) -> Mesh:
    """`mesh` without the walls of cavities, which nobody sees from outside: the parts that are turned inside out, having a
    volume below 0. As it is where it is not watertight, or nothing would be left."""
    if not mesh.is_watertight:
        return mesh
    labels = _components(mesh)  # [V]
    a, b, c = mesh.vertices.astype(np.float64)[mesh.faces.T]
    volumes = np.bincount(labels[mesh.faces[:, 0]], (np.cross(a, b) * c).sum(1), len(labels))
    kept = mesh.faces[volumes[labels[mesh.faces[:, 0]]] >= 0]
    if len(kept) in (0, len(mesh.faces)):
        return mesh
    used, faces = np.unique(kept, return_inverse=True)
    attributes = None if mesh.vertex_attributes is None else mesh.vertex_attributes[used]
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int32), attributes)


def _components(mesh: Mesh) -> np.ndarray:
    """The lowest vertex of the connected part that each vertex belongs to, int64 [V]."""
    labels = np.arange(len(mesh.vertices))
    while True:
        lowest = labels.copy()
        np.minimum.at(lowest, labels[mesh.faces], labels[mesh.faces].min(1, keepdims=True))
        lowest = lowest[lowest]
        while not np.array_equal(lowest, lowest[lowest]):
            lowest = lowest[lowest]
        if np.array_equal(lowest, labels):
            return labels
        labels = lowest[labels]


def _without_folds(faces: np.ndarray) -> np.ndarray:
    """Faces [F, 3] without those of two equal corners, and without pairs of opposite ones on the same three vertices."""
    faces = faces[(faces != np.roll(faces, 1, 1)).all(1)]
    turned = np.take_along_axis(faces, (faces.argmin(1)[:, None] + np.arange(3)) % 3, 1)  # the smallest corner first
    upward = turned[:, 1] < turned[:, 2]
    _, groups, counts = np.unique(np.sort(faces, 1), axis=0, return_inverse=True, return_counts=True)
    keep = np.ones(len(faces), bool)
    for group in np.flatnonzero(counts > 1):
        members = np.flatnonzero(groups == group)
        one, other = members[upward[members]], members[~upward[members]]
        pairs = min(len(one), len(other))
        keep[one[:pairs]] = keep[other[:pairs]] = False
    return faces[keep]
