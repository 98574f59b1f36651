"""A picture of a mesh, drawn on the CPU: a depth buffer, and light from over the viewer's left shoulder on flat faces."""

from collections.abc import Callable

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
    mesh: Mesh, camera: Camera, size: int = 400, background: tuple[int, int, int] = (255, 255, 255), light: bool = True
) -> Image.Image:
    """An RGB picture of `size` x `size` pixels of a mesh as a camera sees it, in its colours, or grey if it has none.

    Both sides of a face are drawn; faces that are not in front of the camera as a whole are left out. Without `light` colours
    are shown as they are. Equal input gives equal bytes. Raises ValueError for a size outside 1 to 2048 and a background that
    is not three integers from 0 to 255.
    """

    def shade(faces: np.ndarray, inside: np.ndarray) -> np.ndarray:
        if mesh.vertex_attributes is None:
            colors = np.full((len(faces), 3), GREY)
        else:
            colors = np.einsum("pv,pvc->pc", inside, mesh.vertex_attributes[mesh.faces[faces], :3])
        return colors * _light(camera.view(mesh.vertices)[mesh.faces[faces]])[:, None] if light else colors

    return draw_faces(mesh.vertices, mesh.faces, shade, camera, size, background)


def draw_faces(
    vertices: np.ndarray,
    triangles: np.ndarray,
    shade: Callable[[np.ndarray, np.ndarray], np.ndarray],
    camera: Camera,
    size: int,
    background: tuple[int, int, int],
) -> Image.Image:
    """As `mesh_picture`, of vertices [V, 3] and triangles [F, 3] in the colours that `shade` gives, from 0 to 1, [P, 3], for
    the faces that are seen at samples, [P], and where in them, barycentric [P, 3]."""
    check_size("size", size, 1)
    if size > LARGEST_SIZE:
        raise ValueError(f"size: expected an integer up to {LARGEST_SIZE}, given {size}")
    if np.shape(background) != (3,) or not all(value in range(256) for value in background):
        raise ValueError(f"background: expected three integers from 0 to 255, given {background!r}")
    side = SUPERSAMPLING * size
    pixels, depth = camera.project(vertices, side)  # [V, 2], [V]
    corners = pixels[triangles]  # [F, 3, 2]
    with np.errstate(divide="ignore"):
        nearness = (1 / depth)[triangles]  # [F, 3]; unlike depth, it changes evenly over the picture
    seen = faces_at_samples(corners, nearness, side)  # [side * side]

    canvas = np.full((side * side, 3), background, np.uint8)
    shown = np.flatnonzero(seen >= 0)
    faces = seen[shown]
    centres = np.stack([shown % side, shown // side], 1) + 0.5  # [P, 2]
    inside = planes(corners[faces] - centres[:, None])[..., 2] * nearness[faces]  # [P, 3], as the mesh is, not the picture
    inside /= inside.sum(1, keepdims=True)
    canvas[shown] = np.rint(255 * np.clip(shade(faces, inside), 0, 1))
    return Image.fromarray(canvas.reshape(side, side, 3)).resize((size, size), Image.Resampling.BOX)


def faces_at_samples(corners: np.ndarray, nearness: np.ndarray, side: int) -> np.ndarray:
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
            along = planes(corners[faces] - (first[rows] + 0.5)[:, None])  # [B, 3, 3]
            weights = along[..., :2] @ offsets + along[..., 2:]  # [B, 3, S]
            hit = (weights >= EDGE).all(1) & (offsets < extent[rows, :, None]).all(1)  # [B, S]
            face, offset = np.nonzero(hit)
            near = (weights[face, :, offset] * nearness[faces[face]]).sum(1)
            bits = near.astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(32)
            places = first[rows[face]] + offsets.T[offset]
            np.maximum.at(best, places @ [1, side], bits | (faces[face] + 1).astype(np.uint64))
    return (best & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1


def planes(corners: np.ndarray) -> np.ndarray:
    """Barycentric coordinates of (right, down) as planes over the picture: float64 [..., 3, 3], a row (by right, by down, at 0)
    for each corner of triangles [..., 3, 2]; NaN for one without area."""
    following, last = np.roll(corners, -1, -2), np.roll(corners, -2, -2)
    slopes = np.stack([following[..., 1] - last[..., 1], last[..., 0] - following[..., 0]], -1)
    at_zero = following[..., 0] * last[..., 1] - following[..., 1] * last[..., 0]
    found = np.concatenate([slopes, at_zero[..., None]], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return found / at_zero.sum(-1)[..., None, None]


def _light(corners: np.ndarray) -> np.ndarray:
    """How bright faces are, float64 [P], with corners [P, 3, 3] as the camera sees them: right, down and forward of it."""
    first, second, third = corners.transpose(1, 0, 2)
    normals = np.cross(second - first, third - first)
    towards_viewer = np.where((normals * first).sum(1) > 0, -1, 1)
    lengths = np.linalg.norm(normals, axis=1) * np.linalg.norm(TO_LIGHT)
    return SHADOW + (1 - SHADOW) * np.maximum(normals @ TO_LIGHT * towards_viewer / lengths, 0)
