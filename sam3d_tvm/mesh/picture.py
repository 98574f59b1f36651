"""A picture of a mesh, drawn on the CPU: a depth buffer, and light from over the viewer's left shoulder on flat faces."""

import numpy as np
from PIL import Image

from sam3d_tvm.checks import check_size
from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.splat.cameras import Camera

LARGEST_SIZE = 2048
SUPERSAMPLING = 2  # samples to a pixel, along each side
BATCH = 1 << 22  # samples that are looked at together
EDGE = -1e-9  # barycentric coordinates from which a sample belongs to a face: rounding leaves no gap between neighbours
GREY = 0.75  # of a mesh without colours
TO_LIGHT = np.array([-0.4, -0.6, -1.0])  # right, down and forward of the viewer
SHADOW = 0.35  # what a face that is turned away from the light keeps of its colour


def mesh_picture(
    mesh: Mesh, camera: Camera, size: int = 400, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """An RGB picture of `size` x `size` pixels of a mesh as a camera sees it, in its colours, or grey if it has none.

    Both sides of a face are drawn; faces that are not in front of the camera as a whole are left out. Equal input gives equal
    bytes. Raises ValueError for a size outside 1 to 2048 and a background that is not three integers from 0 to 255.
    """
    check_size("size", size, 1)
    if size > LARGEST_SIZE:
        raise ValueError(f"size: expected an integer up to {LARGEST_SIZE}, given {size}")
    if np.shape(background) != (3,) or not all(value in range(256) for value in background):
        raise ValueError(f"background: expected three integers from 0 to 255, given {background!r}")
    side = SUPERSAMPLING * size
    pixels, depth = camera.project(mesh.vertices, side)  # [V, 2], [V]
    corners = pixels[mesh.faces]  # [F, 3, 2]
    with np.errstate(divide="ignore"):
        nearness = (1 / depth)[mesh.faces]  # [F, 3]; unlike depth, it changes evenly over the picture
    seen = _seen_faces(corners, nearness, side)  # [side * side]

    canvas = np.full((side * side, 3), background, np.uint8)
    shown = np.flatnonzero(seen >= 0)
    faces = seen[shown]
    centres = np.stack([shown % side, shown // side], 1) + 0.5  # [P, 2]
    inside = _planes(corners[faces] - centres[:, None])[..., 2] * nearness[faces]  # [P, 3], as the mesh is, not the picture
    inside /= inside.sum(1, keepdims=True)
    if mesh.vertex_attributes is None:
        colors = np.full((len(shown), 3), GREY)
    else:
        colors = np.einsum("pv,pvc->pc", inside, mesh.vertex_attributes[mesh.faces[faces], :3])
    light = _light(camera.view(mesh.vertices)[mesh.faces[faces]])  # [P]
    canvas[shown] = np.rint(255 * np.clip(colors * light[:, None], 0, 1))
    return Image.fromarray(canvas.reshape(side, side, 3)).resize((size, size), Image.Resampling.BOX)


def _seen_faces(corners: np.ndarray, nearness: np.ndarray, side: int) -> np.ndarray:
    """The nearest face at every sample of a canvas, int64 [side * side], -1 where there is none."""
    # Samples first[i] to last[i] of both axes have their centres within the box around the face; NaN, behind, gives no samples.
    first = np.ceil(np.clip(corners.min(1), 0, side) - 0.5)
    last = np.floor(np.clip(corners.max(1), 0, side) - 0.5)
    drawable = np.flatnonzero((last >= first).all(1))
    first, extent = first[drawable].astype(np.int64), (last - first + 1)[drawable].astype(np.int64)
    # Nearness as the high and the number of a face as the low 32 bits: a maximum that no order of faces changes.
    best = np.zeros(side * side, np.uint64)
    # Faces whose boxes have about the same size, up to the next power of two, are drawn together.
    exponents = np.ceil(np.log2(extent)).astype(np.int64) @ [32, 1]
    for exponent in np.unique(exponents):
        members = np.flatnonzero(exponents == exponent)
        width, height = divmod(int(exponent), 32)
        right, down = (np.arange(1 << n) for n in (width, height))
        offsets = np.stack([np.tile(right, len(down)), np.repeat(down, len(right))])  # [2, S]
        together = max(1, BATCH >> width + height)
        for rows in np.split(members, range(together, len(members), together)):
            faces = drawable[rows]
            planes = _planes(corners[faces] - (first[rows] + 0.5)[:, None])  # [B, 3, 3]
            weights = planes[..., :2] @ offsets + planes[..., 2:]  # [B, 3, S]
            hit = (weights >= EDGE).all(1) & (offsets < extent[rows, :, None]).all(1)  # [B, S]
            face, offset = np.nonzero(hit)
            near = (weights[face, :, offset] * nearness[faces[face]]).sum(1)
            bits = near.astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(32)
            places = first[rows[face]] + offsets.T[offset]
            np.maximum.at(best, places @ [1, side], bits | (faces[face] + 1).astype(np.uint64))
    return (best & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1


def _planes(corners: np.ndarray) -> np.ndarray:
    """Barycentric coordinates of (right, down) as planes over the picture: float64 [..., 3, 3], a row (by right, by down, at 0)
    for each corner of triangles [..., 3, 2]; NaN for one without area."""
    following, last = np.roll(corners, -1, -2), np.roll(corners, -2, -2)
    slopes = np.stack([following[..., 1] - last[..., 1], last[..., 0] - following[..., 0]], -1)
    at_zero = following[..., 0] * last[..., 1] - following[..., 1] * last[..., 0]
    planes = np.concatenate([slopes, at_zero[..., None]], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return planes / at_zero.sum(-1)[..., None, None]


def _light(corners: np.ndarray) -> np.ndarray:
    """How bright faces are, float64 [P], with corners [P, 3, 3] as the camera sees them: right, down and forward of it."""
    first, second, third = corners.transpose(1, 0, 2)
    normals = np.cross(second - first, third - first)
    towards_viewer = np.where((normals * first).sum(1) > 0, -1, 1)
    lengths = np.linalg.norm(normals, axis=1) * np.linalg.norm(TO_LIGHT)
    return SHADOW + (1 - SHADOW) * np.maximum(normals @ TO_LIGHT * towards_viewer / lengths, 0)
