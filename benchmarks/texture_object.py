"""A made-up object of real size for the benchmark of textures: a bumpy ring with a fine pattern, as a mesh and as Gaussians."""

import numpy as np

from sam3d_tvm.mesh.flexicubes import extract_mesh
from sam3d_tvm.mesh.flexicubes_tables import CORNERS
from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, Gaussians

RING, TUBE, BUMPS = 0.34, 0.09, 0.012  # radii and height of the bumps, in an object that fills -0.5..0.5
SHELL = 1.5  # cubes on either side of the surface that are given
SLOPE = 1e-4  # step of a difference quotient


def signed_distance(points: np.ndarray) -> np.ndarray:
    """About the distance of points [N, 3] to the surface, below 0 inside: float64 [N]."""
    x, y, z = points.T
    around = np.arctan2(y, x)
    ring = np.hypot(np.hypot(x, y) - RING, z)
    return ring - TUBE - BUMPS * np.sin(9 * around) * np.cos(40 * z) - BUMPS * np.cos(25 * x) * np.sin(31 * y)


def pattern(points: np.ndarray) -> np.ndarray:
    """Colours of points [N, 3], float64 [N, 3] from 0 to 1: stripes of 5 to 15 cubes of a grid of 256, spots, shades."""
    x, y, z = points.T
    stripes = 0.5 + 0.5 * np.tanh(4 * np.sin(180 * x + 8 * np.sin(20 * z)))
    checks = 0.5 + 0.5 * np.tanh(6 * np.sin(110 * y) * np.sin(95 * z))
    shade = 0.5 + 0.5 * np.sin(7 * x + 5 * y - 6 * z)
    return np.stack([0.15 + 0.7 * stripes, 0.1 + 0.5 * checks + 0.3 * shade, 0.1 + 0.8 * shade * (1 - 0.6 * stripes)], -1)


def ring_mesh(resolution: int = 256) -> Mesh:
    """The surface by FlexiCubes, with the pattern at its vertices."""
    centres = (np.arange(resolution) + 0.5) / resolution - 0.5
    near = []
    for number, x in enumerate(centres):
        y, z = np.meshgrid(centres, centres, indexing="ij")
        points = np.stack([np.full(y.size, x), y.ravel(), z.ravel()], -1)
        found = np.flatnonzero(np.abs(signed_distance(points)) < SHELL * 1.2 / resolution)
        near.append(np.stack([np.full(len(found), number), found // resolution, found % resolution], -1))
    cells = np.concatenate(near)  # [N, 3]
    corners = (cells[:, None] + CORNERS) / resolution - 0.5  # [N, 8, 3]
    feats = np.zeros((len(cells), 101), np.float32)
    feats[:, :8] = signed_distance(corners.reshape(-1, 3)).reshape(-1, 8) + 1 / resolution
    colors = np.clip(pattern(corners.reshape(-1, 3)), 1e-3, 1 - 1e-3)
    logits = np.zeros((len(cells), 8, 6), np.float32)
    logits[..., :3] = np.log(colors / (1 - colors)).reshape(-1, 8, 3)
    feats[:, 53:] = logits.reshape(len(cells), 48)
    coords = np.hstack([np.zeros((len(cells), 1), np.int32), cells.astype(np.int32)])
    return extract_mesh(coords, feats, resolution, True)


def ring_gaussians(mesh: Mesh, count: int = 400_000, seed: int = 0) -> Gaussians:
    """`count` flat Gaussians on the surface of the mesh, evenly over its area, in the colours of the pattern."""
    rng = np.random.default_rng(seed)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    faces = rng.choice(len(areas), count, p=areas / areas.sum())
    weights = rng.dirichlet([1, 1, 1], count)
    xyz = (corners[faces] * weights[..., None]).sum(1)
    normals = np.stack([(signed_distance(xyz + step) - signed_distance(xyz - step)) for step in SLOPE * np.eye(3)], -1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    # The shortest turn from z to the normal.
    half = normals + np.array([0, 0, 1 + 1e-9])
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    quaternion = np.stack([half[:, 2], -half[:, 1], half[:, 0], np.zeros(count)], -1)
    spacing = np.sqrt(areas.sum() / 2 / count)
    scaling = spacing * np.stack([rng.uniform(0.7, 1.3, count), rng.uniform(0.7, 1.3, count), np.full(count, 0.15)], -1)
    return Gaussians(
        xyz=xyz,
        features_dc=(pattern(xyz) - 0.5) / CONSTANT_HARMONIC,
        opacity_logit=rng.normal(2.5, 1, count),
        log_scaling=np.log(scaling),
        quaternion=quaternion,
    )
