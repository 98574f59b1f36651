"""Pictures of objects by sphere tracing (J. C. Hart, "Sphere tracing", The Visual Computer 12, 1996), and their true
colours."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam3d_tvm.splat.cameras import Camera
from training.shapes import Object

STEPS = 64
SHORTER = 0.9  # of the distance is walked at a step, as distances of tables and rings are not exact
TOUCHING = 0.0015
REACH = 0.05  # of the cube around a box that rays are followed in
OCCLUSION_STEPS = (0.03, 0.08, 0.16)
DARKEST = 0.5  # what is left of a colour where nothing of the sky is seen


@dataclass(frozen=True, eq=False)
class Surface:
    """What is seen in a picture of P pixels: `hit` bool [P]; of the H pixels that hit the object, points float32 [H, 3],
    normals float32 [H, 3], materials int64 [H], occlusion float32 [H] as of `openness`, depth float32 [H] along the camera's
    axis."""

    hit: Tensor
    points: Tensor
    normals: Tensor
    materials: Tensor
    openness: Tensor
    depth: Tensor


def openness(thing: Object, points: Tensor, normals: Tensor) -> Tensor:
    """How free of other surface points [N, 3] are along their normals: float32 [N] in 0..1, the mean of distance / step over
    `OCCLUSION_STEPS`, each at most 1 (ambient occlusion from distance fields: A. Evans, SIGGRAPH 2006 courses)."""
    found = [(thing.distance(points + normals * step) / step).clamp(0, 1) for step in OCCLUSION_STEPS]
    return torch.stack(found).mean(0)


def surface_colours(palette: Tensor, materials: Tensor, open_part: Tensor) -> Tensor:
    """The true colours float32 [N, 3] in 0..1 of places of `materials` [N] and `openness` [N]; palette float32 [materials,
    3]."""
    return palette[materials] * (DARKEST + (1 - DARKEST) * open_part)[:, None]


def pixel_rays(camera: Camera, low: np.ndarray, high: np.ndarray, size: int) -> Tensor:
    """Directions float32 [size * size, 3] through the middles of pixels, row by row, of the window from `low` to `high` [2],
    (right, down) at depth 1 of the camera. They are 1 long along the camera's axis."""
    across, down = (low[i] + (high[i] - low[i]) * (np.arange(size) + 0.5) / size for i in range(2))
    y, x = np.meshgrid(down, across, indexing="ij")
    own = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    return torch.tensor(own @ camera.rotation, dtype=torch.float32)


def trace(thing: Object, camera: Camera, rays: Tensor) -> Surface:
    """What rays [P, 3], of `pixel_rays`, meet first."""
    origin = torch.tensor(camera.position, dtype=torch.float32)
    length = rays.norm(dim=1)
    along = rays / length[:, None]
    half = torch.tensor(thing.half + REACH / 2, dtype=torch.float32)
    ends = torch.stack([(-half - origin) / along, (half - origin) / along])
    near, far = ends.amin(0).amax(-1).clamp(min=0), ends.amax(0).amin(-1)
    walked = torch.full((len(rays),), torch.inf)
    active = (near < far).nonzero()[:, 0]
    at = near[active]
    for _ in range(STEPS):
        distance = thing.distance(origin + at[:, None] * along[active])
        there = distance < TOUCHING
        walked[active[there]] = at[there]
        at = at + distance * SHORTER
        on = ~there & (at < far[active])
        active, at = active[on], at[on]
        if not len(active):
            break
    hit = walked.isfinite()
    points = origin + walked[hit][:, None] * along[hit]
    normals = thing.normals(points)
    depth = walked[hit] / length[hit]
    return Surface(hit, points, normals, thing.materials(points), openness(thing, points, normals), depth)


def render(
    thing: Object,
    palette: np.ndarray,
    camera: Camera,
    size: int,
    background: tuple[float, float, float] = (1, 1, 1),
    samples: int = 2,
) -> np.ndarray:
    """A picture uint8 [size, size, 4] of an object in its true colours, `samples`^2 rays a pixel; alpha is what it covers.

    palette: float32 [materials, 3] in 0..1. Colours are over `background`.
    """
    reach = np.full(2, 0.5 / camera.focal)
    seen = trace(thing, camera, pixel_rays(camera, -reach, reach, size * samples))
    rgba = torch.zeros(len(seen.hit), 4)
    rgba[:, :3] = torch.tensor(background, dtype=torch.float32)
    rgba[seen.hit, :3] = surface_colours(torch.as_tensor(palette), seen.materials, seen.openness)
    rgba[seen.hit, 3] = 1
    mean = rgba.reshape(size, samples, size, samples, 4).mean((1, 3))
    return (mean.numpy() * 255 + 0.5).astype(np.uint8)
