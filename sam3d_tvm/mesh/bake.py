"""Textures: the colours of Gaussians, or of a mesh's vertices, as they are seen from all around, on a mesh of fewer triangles.

simplify -> unwrap -> draw the Gaussians from `views` cameras -> every texel takes the mean of the views that see it, those that
look straight at it before those from aside. Whether a view sees a texel is told by its depth. What no view sees has the colour
of the mesh there, and what lies between the charts that of their borders. Walls of closed cavities, which nobody sees, are left
out before.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from sam3d_tvm.checks import check_size
from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.mesh.picture import draw_faces, faces_at_samples, planes
from sam3d_tvm.mesh.simplify import check_triangles, simplify, without_cavities
from sam3d_tvm.mesh.unwrap import unwrap
from sam3d_tvm.splat.cameras import Camera, fitting_radius
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, Gaussians

TRIANGLES, TEXTURE_SIZE, VIEWS = 20_000, 1024, 100
TEXTURE_SIZES = (16, 8192)
VIEW_SIZES = (256, 2048)  # pixels; between, half of the texture's, which show as much as its texels
SLACK = 0.015  # by how much depths may differ, as a part of the mesh's largest extent
RINGS = 2  # around charts, in texels, that are filled from their rim alone
BATCH = 1 << 20  # texels that are looked at together
WIDTH = 0.45  # of the Gaussians of a mesh, in lengths of its edges
LEAST_COSINE = 0.15  # between a normal and the way to the viewer
GOLDEN = np.pi * (3 - np.sqrt(5))


@dataclass(frozen=True, eq=False)
class TexturedMesh:
    """A mesh with a texture, as `bake` makes it.

    mesh: of the triangles asked for, before it was cut. corners int32 [W]: the vertex of `mesh` that each vertex of the cut one
    is; faces int32 [F, 3] of those; uv float32 [W, 2] from the top left of the texture; texture uint8 [S, S, 3] in sRGB.
    seconds: of the steps.
    """

    mesh: Mesh
    corners: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def vertices(self) -> np.ndarray:
        """float32 [W, 3]."""
        return self.mesh.vertices[self.corners]

    @property
    def vertex_normals(self) -> np.ndarray:
        """Those of the mesh before it was cut, so that no light shows where: float32 [W, 3]."""
        return self.mesh.vertex_normals[self.corners]

    @property
    def is_watertight(self) -> bool:
        """Of the mesh before it was cut: vertices in the same place count as one."""
        return self.mesh.is_watertight

    @cached_property
    def png(self) -> bytes:
        """The texture as a PNG file."""
        data = io.BytesIO()
        Image.fromarray(self.texture).save(data, format="PNG")
        return data.getvalue()


def textured_picture(
    mesh: TexturedMesh, camera: Camera, size: int = 400, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """As `mesh_picture` without light, with the texture bilinearly between its texels."""

    def shade(faces: np.ndarray, inside: np.ndarray) -> np.ndarray:
        places = np.einsum("pv,pvc->pc", inside, mesh.uv[mesh.faces[faces]]) * len(mesh.texture) - 0.5
        first = np.floor(places).astype(np.int64)
        (right, down), last = (places - first).T[..., None], len(mesh.texture) - 1
        x, y = (np.clip([first[:, axis], first[:, axis] + 1], 0, last) for axis in (0, 1))
        texture = mesh.texture / 255
        above = texture[y[0], x[0]] * (1 - right) + texture[y[0], x[1]] * right
        below = texture[y[1], x[0]] * (1 - right) + texture[y[1], x[1]] * right
        return above * (1 - down) + below * down

    return draw_faces(mesh.vertices, mesh.faces, shade, camera, size, background)


@dataclass(frozen=True)
class Surface:
    """How meshes are written: with at most so many triangles (by default as many as there are, and 20,000 under a texture) and
    a texture of so many pixels along each side. ValueError for fewer than 4 triangles, a size outside 16 to 8192."""

    triangles: int | None = None
    texture_size: int = TEXTURE_SIZE

    def __post_init__(self):
        check_texture(self.textured_triangles, self.texture_size)

    @property
    def textured_triangles(self) -> int:
        return TRIANGLES if self.triangles is None else self.triangles


def check_texture(triangles: int, texture_size: int, views: int = VIEWS) -> None:
    """ValueError for fewer than 4 triangles, a texture size outside 16 to 8192, and no views."""
    check_triangles(triangles)
    low, high = TEXTURE_SIZES
    check_size("texture_size", texture_size, low)
    if texture_size > high:
        raise ValueError(f"texture_size: expected an integer from {low} to {high}, given {texture_size}")
    check_size("views", views, 1)


def bake(
    mesh: Mesh,
    gaussians: Gaussians | None = None,
    triangles: int = TRIANGLES,
    texture_size: int = TEXTURE_SIZE,
    views: int = VIEWS,
) -> TexturedMesh:
    """`mesh` with about `triangles` faces and a texture of `texture_size` pixels along each side, in which are the colours of
    `gaussians`, or without any those of its own vertices, as `views` cameras around it see them.

    Equal arguments give equal results, at any number of threads. Raises ValueError as `check_texture` and `simplify`, for a
    mesh without faces, and for one without colours if there are no Gaussians.
    """
    check_texture(triangles, texture_size, views)
    if len(mesh.faces) == 0:
        raise ValueError("mesh: expected at least one face to bake a texture for, given none")
    if gaussians is None or len(gaussians) == 0:
        if mesh.vertex_attributes is None:
            raise ValueError("mesh: expected colours at its vertices where there are no Gaussians, given none")
        gaussians = None
    seconds: dict[str, float] = {}
    visible = _timed(seconds, "cavities", lambda: without_cavities(mesh))
    simple = _timed(seconds, "simplify", lambda: simplify(visible, triangles))
    corners, faces, uv = _timed(seconds, "unwrap", lambda: unwrap(simple, texture_size))
    texels = _timed(seconds, "texels", lambda: _Texels(simple, corners, faces, uv, texture_size))
    if gaussians is None and simple is visible:  # its colours are there as they are
        sums = np.zeros((len(texels.points), 4), np.float32)
    else:
        source = gaussians_of(visible) if gaussians is None else gaussians
        sums = _timed(seconds, "views", lambda: _seen_colors(texels, simple, source, views, texture_size))
    texture = _timed(seconds, "fill", lambda: texels.filled(sums, simple))
    return TexturedMesh(simple, corners, faces, uv, texture, seconds)


def bake_cameras(mesh: Mesh, views: int) -> list[Camera]:
    """Cameras evenly all around, on a spiral from above to below, each as near as the box of the mesh fits into its view."""
    low, high = mesh.vertices.min(0).astype(np.float64), mesh.vertices.max(0).astype(np.float64)
    found = []
    for number in range(views):
        height = 1 - (2 * number + 1) / views
        level = np.sqrt(1 - height**2)
        azimuth = GOLDEN * number
        forward = -np.array([level * np.cos(azimuth), level * np.sin(azimuth), height])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
        rotation = np.stack([right, np.cross(forward, right), forward])
        radius = max(fitting_radius(high - low, rotation), 1e-3)
        found.append(Camera(rotation, (low + high) / 2 - radius * forward))
    return found


def gaussians_of(mesh: Mesh) -> Gaussians:
    """Flat, nearly opaque Gaussians in the colours of a mesh, at its vertices and in the middles of its faces, in this order,
    so wide that next to nothing shines through."""
    ends = mesh.vertices[mesh.faces].astype(np.float64)  # [F, 3, 3]
    edges = np.linalg.norm(ends - np.roll(ends, 1, 1), axis=2)  # [F, 3]: before each corner
    owners, count = mesh.faces.reshape(-1), len(mesh.vertices)
    means = np.bincount(owners, edges.reshape(-1), count) / np.maximum(np.bincount(owners, minlength=count), 1)
    widths = WIDTH * np.concatenate([means, edges.mean(1)])
    used = np.flatnonzero(widths > 0)
    normals = np.concatenate([mesh.vertex_normals, mesh.face_normals]).astype(np.float64)[used]
    normals[~normals.any(1)] = [0, 0, 1]
    half = normals + np.array([0, 0, 1])
    half = np.where(half.any(1)[:, None], half, [1, 0, 0])
    half /= np.linalg.norm(half, axis=1, keepdims=True)  # the half turn around it takes z to the normal
    colors = mesh.vertex_attributes[:, :3]
    return Gaussians(
        xyz=np.concatenate([mesh.vertices, ends.mean(1)])[used],
        features_dc=(np.concatenate([colors, colors[mesh.faces].mean(1)])[used] - 0.5) / CONSTANT_HARMONIC,
        opacity_logit=np.full(len(used), 4.0),
        log_scaling=np.log(widths[used, None] * [1, 1, 0.1]),
        quaternion=np.concatenate([np.zeros((len(used), 1)), half], 1),
    )


AS_IT_IS = Surface()


class _Texels:
    """The pixels of a texture that lie in a chart, M of them, and where they are on the mesh."""

    def __init__(self, mesh: Mesh, corners: np.ndarray, faces: np.ndarray, uv: np.ndarray, size: int):
        self.size = size
        places = (uv.astype(np.float64) * size)[faces]  # [F, 3, 2]
        found = faces_at_samples(places, np.ones((len(faces), 3)), size)  # [size^2]
        self.pixels = np.flatnonzero(found >= 0)  # [M]
        self.faces = found[self.pixels]
        self.weights = np.empty((len(self.pixels), 3), np.float32)  # [M, 3], of the corners of its face
        for start in range(0, len(self.pixels), BATCH):
            some = slice(start, start + BATCH)
            centres = np.stack([self.pixels[some] % size, self.pixels[some] // size], 1) + 0.5
            self.weights[some] = planes(places[self.faces[some]] - centres[:, None])[..., 2]
        self.corners = corners[faces[self.faces]]  # [M, 3]
        self.points = self._mean(mesh.vertices)
        self.normals = self._mean(mesh.vertex_normals)

    def _mean(self, values: np.ndarray) -> np.ndarray:
        """Values at the vertices of the mesh, [V, C], at the texels: float32 [M, C]."""
        return np.einsum("mv,mvc->mc", self.weights, values[self.corners]).astype(np.float32)

    def filled(self, sums: np.ndarray, mesh: Mesh) -> np.ndarray:
        """The texture, uint8 [size, size, 3], of weighted sums of colours and weights [M, 4]."""
        weights = sums[:, 3:]
        colors = sums[:, :3] / np.where(weights > 0, weights, 1)
        seen = weights[:, 0] > 0
        if mesh.vertex_attributes is not None:
            colors[~seen] = self._mean(mesh.vertex_attributes[:, :3])[~seen]
            seen = np.ones_like(seen)
        canvas = np.zeros((self.size**2, 4), np.float32)
        canvas[self.pixels[seen]] = np.concatenate([colors[seen], np.ones((seen.sum(), 1))], 1)
        return np.rint(255 * np.clip(_pull_push(_dilated(canvas.reshape(self.size, self.size, 4))), 0, 1)).astype(np.uint8)


def _seen_colors(texels: _Texels, mesh: Mesh, gaussians: Gaussians, views: int, texture_size: int) -> np.ndarray:
    """Weighted sums of colours and weights over the views, float32 [M, 4]."""
    from sam3d_tvm.splat.raster import Lookup, Raster

    raster, lookup = Raster(gaussians), Lookup(texels.points, texels.normals, LEAST_COSINE)
    side = view_size(texture_size)
    slack = SLACK * float((mesh.vertices.max(0) - mesh.vertices.min(0)).max())
    for camera in bake_cameras(mesh, views):
        lookup.add(camera, raster.draw(camera, side), slack)
    return lookup.sums


def view_size(texture_size: int) -> int:
    """Pixels of a view along each side."""
    low, high = VIEW_SIZES
    return min(max(texture_size // 2, low), high) // 16 * 16


def _dilated(canvas: np.ndarray, rings: int = RINGS) -> np.ndarray:
    """A canvas as of `_pull_push`, in which pixels beside known ones are known as the means of these, so many times: what is
    mixed in at the rim of a chart is like the rim."""
    size = len(canvas)
    for _ in range(rings):
        wide = np.pad(canvas, ((1, 1), (1, 1), (0, 0)))
        sums = sum(wide[y : y + size, x : x + size] for y in range(3) for x in range(3))
        count = sums[..., 3:]
        near = np.concatenate([sums[..., :3] / np.where(count > 0, count, 1), np.minimum(count, 1)], 2)
        canvas = np.where(canvas[..., 3:] > 0, canvas, near)
    return canvas


def _pull_push(canvas: np.ndarray) -> np.ndarray:
    """Colours [S, S, 3] of a canvas [S, S, 4] of colours and a 1 where they are known: known ones as they are, others from
    means over ever larger squares (Gortler et al., The Lumigraph, 1996)."""
    size = len(canvas)
    known = canvas[..., 3:]
    if size == 1:
        return canvas[..., :3]
    even = np.pad(canvas * np.where(np.arange(4) < 3, known, 1), ((0, size % 2), (0, size % 2), (0, 0)))
    quarters = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    count = quarters[..., 3:]
    coarse = np.concatenate([quarters[..., :3] / np.where(count > 0, count, 1), np.minimum(count, 1)], 2)
    coarse = _pull_push(coarse)
    # Between the centres of coarse pixels, linearly.
    wide = np.pad(coarse, ((1, 1), (1, 1), (0, 0)), mode="edge")
    for axis in (0, 1):
        before, at, after = (np.take(wide, range(i, wide.shape[axis] - 2 + i), axis) for i in range(3))
        pair = np.stack([0.25 * before + 0.75 * at, 0.75 * at + 0.25 * after], axis + 1)
        wide = pair.reshape(*pair.shape[:axis], -1, *pair.shape[axis + 2 :])
    return np.where(known > 0, canvas[..., :3], wide[:size, :size])


def _timed(seconds: dict[str, float], name: str, work: Callable):
    start = time.perf_counter()
    found = work()
    seconds[name] = time.perf_counter() - start
    return found
