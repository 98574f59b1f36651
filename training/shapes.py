"""Procedural tableware and household objects: signed distance and material at any point, from a seed.

An object stands in the cube -0.5..0.5, its middle in the middle, its longest side `EXTENT`; axes are those of
`sam3d_tvm.frames.OBJECT`: x right, y away, z up. Distances are in units of the cube, negative inside.

An object is a union of parts. Most are turned on a wheel: a wall of even thickness along a profile, which is a line of
distances from the axis r over heights z, and what the wall holds up to a level.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EXTENT = 0.85  # of the longest side
OUTSIDE, INSIDE, CONTENT, HANDLE, BAND, SAUCER, RIM, LID = range(8)
MATERIALS = 8
CUPS_AND_BOWLS = ("cup", "mug", "cup and saucer", "bowl")

# Of the table that a turned part is looked up in, in the part's own units, in which cups have a radius of about 0.5.
TABLE_RADIUS, TABLE_LOW, TABLE_HEIGHT = 1.2, -0.4, 3.0
TABLE_STEPS = (160, 80)  # along z and r
NORMAL_STEP = 0.004  # half of the distance over which a normal is a difference


class Turned:
    """A wall around the z axis: `thickness` around the line of `radii` [K] over `heights` [K], which begins on the axis.

    floor: the height above which it is hollow. level: up to which height it is filled, None where it is empty; a filling that
    reaches the rim is of the wall's material. bands: pairs of heights, between which the outside is a `BAND`. rim: whether the
    upper edge is of a material of its own. lid: the height above which all is `LID`. material: of the outside.
    """

    def __init__(
        self,
        radii: Sequence[float],
        heights: Sequence[float],
        thickness: float,
        floor: float = 0.0,
        level: float | None = None,
        bands: Sequence[tuple[float, float]] = (),
        rim: bool = False,
        lid: float | None = None,
        material: int = OUTSIDE,
    ):
        self.radii, self.heights, self.thickness = np.asarray(radii, float), np.asarray(heights, float), thickness
        z = TABLE_LOW + TABLE_HEIGHT * (torch.arange(TABLE_STEPS[0]) + 0.5) / TABLE_STEPS[0]
        r = TABLE_RADIUS * (torch.arange(TABLE_STEPS[1]) + 0.5) / TABLE_STEPS[1]
        z, r = torch.meshgrid(z, r, indexing="ij")  # [Z, R]
        line = torch.tensor(np.stack([np.r_[0, radii], np.r_[heights[0], heights]], 1), dtype=torch.float32)
        distance = _to_segments(torch.stack([r, z], -1), line) - thickness / 2
        wall = torch.tensor(np.interp(z[:, 0].numpy(), heights, radii), dtype=torch.float32)[:, None]  # [Z, 1]
        hollow = (r < wall) & (z > floor)
        top = float(heights[-1])
        materials = torch.where(hollow, INSIDE, material)
        for low, high in bands:
            materials[~hollow & (z > low) & (z < high)] = BAND
        if rim:
            materials[(z > top - 0.02) & (r < wall + 0.1)] = RIM
        if level is not None:
            filling = torch.maximum(torch.maximum(z - level, r - wall), floor - z)
            closed = level >= top
            materials[hollow if closed else (filling < distance) & (filling < 0.02)] = material if closed else CONTENT
            distance = torch.minimum(distance, filling)
        if lid is not None:
            materials[z > lid] = LID
        self.table, self.materials_table = distance[None, None].float(), materials

    def distance(self, points: Tensor) -> Tensor:
        r = torch.hypot(points[:, 0], points[:, 1])
        at = torch.stack([r / TABLE_RADIUS * 2 - 1, (points[:, 2] - TABLE_LOW) / TABLE_HEIGHT * 2 - 1], -1)
        return F.grid_sample(self.table, at[None, None], align_corners=False, padding_mode="border")[0, 0, 0]

    def materials(self, points: Tensor) -> Tensor:
        r = torch.hypot(points[:, 0], points[:, 1])
        row = (points[:, 2] - TABLE_LOW) / TABLE_HEIGHT * TABLE_STEPS[0]
        column = r / TABLE_RADIUS * TABLE_STEPS[1]
        row, column = (at.long().clamp(0, n - 1) for at, n in zip((row, column), TABLE_STEPS, strict=True))
        return self.materials_table[row, column]

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        half = self.thickness / 2
        radius = self.radii.max() + half
        return np.array([-radius, -radius, self.heights.min() - half]), np.array([radius, radius, self.heights.max() + half])

    def radius_at(self, height: float) -> float:
        return float(np.interp(height, self.heights, self.radii))


@dataclass(frozen=True)
class Handle:
    """Half of an elliptic ring, that begins at distance `start` from the axis: in the direction `azimuth`, its middle at
    `height`, `reach` far and `rise` up and down; the ring is `thickness` / 2 around its line."""

    azimuth: float
    start: float
    height: float
    reach: float
    rise: float
    thickness: float

    def distance(self, points: Tensor) -> Tensor:
        along, across = _turned(points, self.azimuth)
        u, v = along - self.start, points[:, 2] - self.height
        k = torch.hypot(u / self.reach, v / self.rise)
        slope = torch.hypot(u / self.reach**2, v / self.rise**2) / k.clamp(min=1e-3)
        ring = (k - 1).abs() / slope.clamp(min=1e-3)
        return torch.maximum(torch.hypot(ring, across * 0.8) - self.thickness / 2, -u - 0.02)

    def materials(self, points: Tensor) -> Tensor:
        return torch.full((len(points),), HANDLE)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        far = self.start + self.reach + self.thickness / 2
        end = np.array([math.cos(self.azimuth) * far, math.sin(self.azimuth) * far])
        half = self.rise + self.thickness / 2
        return np.r_[np.minimum(end, 0), self.height - half], np.r_[np.maximum(end, 0), self.height + half]


@dataclass(frozen=True)
class Spout:
    """A cone from distance `start` at height `low` to `end` at height `high`, of two radii."""

    azimuth: float
    start: float
    low: float
    end: float
    high: float
    radii: tuple[float, float] = (0.15, 0.075)

    def distance(self, points: Tensor) -> Tensor:
        along, across = _turned(points, self.azimuth)
        du, dv = self.end - self.start, self.high - self.low
        u, v = along - self.start, points[:, 2] - self.low
        t = ((u * du + v * dv) / (du * du + dv * dv)).clamp(0, 1)
        off = torch.sqrt((u - t * du) ** 2 + across**2 + (v - t * dv) ** 2)
        return off - (self.radii[0] + (self.radii[1] - self.radii[0]) * t)

    def materials(self, points: Tensor) -> Tensor:
        return torch.full((len(points),), HANDLE)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        ends = np.array([math.cos(self.azimuth), math.sin(self.azimuth)]) * self.end
        radius = self.radii[1]
        return np.r_[np.minimum(ends - radius, 0), self.low - radius], np.r_[np.maximum(ends + radius, 0), self.high + radius]


@dataclass(frozen=True)
class Box:
    """A box with rounded edges that stands on z = 0, turned by `azimuth`; `half` sizes, `top`: whether its upper side is a
    BAND."""

    half: tuple[float, float, float]
    azimuth: float
    rounding: float
    top: bool

    def distance(self, points: Tensor) -> Tensor:
        along, across = _turned(points, self.azimuth)
        at = torch.stack([along, across, points[:, 2] - self.half[2]], -1)
        over = at.abs() - torch.tensor(self.half) + self.rounding
        return over.clamp(min=0).norm(dim=-1) + over.amax(-1).clamp(max=0) - self.rounding

    def materials(self, points: Tensor) -> Tensor:
        upper = points[:, 2] > 2 * self.half[2] - 0.03
        return torch.where(upper & self.top, BAND, OUTSIDE)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        c, s = abs(math.cos(self.azimuth)), abs(math.sin(self.azimuth))
        x, y = self.half[0] * c + self.half[1] * s, self.half[0] * s + self.half[1] * c
        return np.array([-x, -y, 0]), np.array([x, y, 2 * self.half[2]])


Part = Turned | Handle | Spout | Box


class Object:
    """A union of parts, brought into the cube. `kind`: one of `KINDS`."""

    def __init__(self, kind: str, parts: Sequence[Part]):
        self.kind, self.parts = kind, tuple(parts)
        boxes = [part.box() for part in self.parts]
        low, high = np.min([low for low, _ in boxes], 0), np.max([high for _, high in boxes], 0)
        self.scale = EXTENT / (high - low).max()
        self.middle = torch.tensor((low + high) / 2, dtype=torch.float32)
        self.half = (high - low) / 2 * self.scale  # of its box in the cube, [3]

    def distance(self, points: Tensor) -> Tensor:
        """float32 [N, 3] in the cube -> float32 [N], in units of the cube."""
        own = points / self.scale + self.middle
        found = self.parts[0].distance(own)
        for part in self.parts[1:]:
            found = torch.minimum(found, part.distance(own))
        return found * self.scale

    def materials(self, points: Tensor) -> Tensor:
        """float32 [N, 3] in the cube -> int64 [N], below `MATERIALS`: those of the nearest part."""
        own = points / self.scale + self.middle
        nearest = torch.stack([part.distance(own) for part in self.parts]).argmin(0)
        found = torch.stack([part.materials(own) for part in self.parts])
        return found.gather(0, nearest[None])[0]

    def normals(self, points: Tensor) -> Tensor:
        """float32 [N, 3] in the cube -> the unit directions in which the distance grows, float32 [N, 3]."""
        found = torch.stack(
            [self.distance(points + step) - self.distance(points - step) for step in torch.eye(3) * NORMAL_STEP], -1
        )
        return F.normalize(found, dim=-1)


def _turned(points: Tensor, azimuth: float) -> tuple[Tensor, Tensor]:
    """How far points [N, 3] are along a horizontal direction, and across it: two of [N]."""
    c, s = math.cos(azimuth), math.sin(azimuth)
    return c * points[:, 0] + s * points[:, 1], c * points[:, 1] - s * points[:, 0]


def _to_segments(points: Tensor, line: Tensor) -> Tensor:
    """The distance of points [..., 2] from a line through points [K, 2]: [...]."""
    start, along = line[:-1], line[1:] - line[:-1]
    off = points[..., None, :] - start
    t = ((off * along).sum(-1) / (along * along).sum(-1).clamp(min=1e-9)).clamp(0, 1)
    return (off - t[..., None] * along).norm(dim=-1).amin(-1)


def _smooth(heights: tuple[float, float], radii: Sequence[float], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Radii and heights [count] through equally spaced `radii`, by cubics whose slopes are central differences."""
    t = np.linspace(0, len(radii) - 1, count)
    i = np.minimum(t.astype(int), len(radii) - 2)
    f = t - i
    p = np.concatenate([[2 * radii[0] - radii[1]], radii, [2 * radii[-1] - radii[-2]]])
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    r = b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))
    return np.maximum(r, 0.01), np.linspace(*heights, count)


# The kinds. Each function makes the parts of one; `u(low, high)` is a uniform number, `random` its generator.
Uniform = Callable[[float, float], float]


def _bands(random: np.random.Generator, u: Uniform, height: float) -> list[tuple[float, float]]:
    starts = [u(0.0, 0.9) for _ in range(random.choice(3, p=(0.6, 0.3, 0.1)))]
    return [(start * height, (start + u(0.1, 0.3)) * height) for start in starts]


def _vessel(random: np.random.Generator, u: Uniform, mug: bool, full: float = 0.6, handle: float = 0.85) -> list[Part]:
    """A cup, or a mug, which is taller and straight: maybe with a handle, a filling, bands and a rim."""
    height = u(0.6, 1.15) if mug else u(0.5, 0.85)
    upper = u(0.4, 0.5)
    lower = upper * (u(0.85, 1.0) if mug else u(0.5, 0.85))
    belly = u(-0.02, 0.03) if mug else u(0.0, 0.12)
    steps = np.array([0, 0.25, 0.5, 0.75, 1.0])
    radii = lower + (upper - lower) * steps + belly * np.sin(np.pi * np.minimum(steps + 0.1, 1)) * (steps > 0)
    level = u(0.4, 0.88) * height if random.random() < full else None
    body = Turned(*_smooth((0, height), radii, 12), u(0.09, 0.13), 0, level, _bands(random, u, height), random.random() < 0.3)
    if random.random() >= handle:
        return [body]
    middle = height * u(0.45, 0.62)
    ring = Handle(u(0, 2 * np.pi), body.radius_at(middle), middle, u(0.18, 0.3), height * u(0.24, 0.36), u(0.09, 0.13))
    return [body, ring]


def _cup(random, u):
    return _vessel(random, u, mug=False)


def _mug(random, u):
    return _vessel(random, u, mug=True)


def _saucer(u: Uniform, radius: float, material: int) -> Turned:
    rise, along = u(0.04, 0.12), np.linspace(0.15, 1, 8)
    return Turned(along * radius, -0.06 + rise * along**3, u(0.08, 0.1), floor=9.0, material=material)


def _cup_and_saucer(random, u):
    cup = _vessel(random, u, mug=False)
    return [*cup, _saucer(u, cup[0].radii.max() * u(1.5, 1.9), SAUCER)]


def _bowl(random, u):
    height, lower, steepness, along = u(0.28, 0.55), u(0.12, 0.25), u(1.6, 3), np.linspace(0, 1, 12)
    level = u(0.35, 0.8) * height if random.random() < 0.35 else None
    radii, heights = lower + (0.5 - lower) * along ** u(0.6, 1.0), height * along**steepness
    return [Turned(radii, heights, u(0.09, 0.12), 0, level, _bands(random, u, height), random.random() < 0.3)]


def _plate(random, u):
    height, steepness, along = u(0.06, 0.16), u(1.5, 4), np.linspace(0, 1, 12)
    return [Turned(0.15 + 0.35 * along, height * along**steepness, u(0.08, 0.1), 0, None, [], random.random() < 0.5)]


def _vase(random, u):
    height, radii = u(0.9, 1.9), np.array([u(0.18, 0.5) for _ in range(random.integers(4, 6))])
    radii[0], radii[-1] = max(radii[0], 0.22), u(0.14, 0.32)
    level = height if random.random() < 0.5 else None
    return [Turned(*_smooth((0, height), radii, 18), u(0.09, 0.12), 0, level, _bands(random, u, height))]


def _bottle(random, u):
    height, body, neck, shoulder = u(1.3, 2.1), u(0.25, 0.4), u(0.09, 0.14), u(0.45, 0.7)
    heights = np.array([0, shoulder, shoulder + u(0.1, 0.25), 1]) * height
    heights[2] = min(heights[2], 0.92 * height)
    radii = np.array([body * u(0.9, 1), body, neck, neck])
    cap = heights[-1] * u(0.88, 0.94) if random.random() < 0.7 else None
    bands = [(u(0.1, 0.25) * shoulder * height, u(0.6, 0.95) * shoulder * height)] if random.random() < 0.6 else []
    return [Turned(radii, heights, u(0.06, 0.09), 0, height, bands, lid=cap)]


def _glass(random, u):
    if random.random() < 0.5:  # a tumbler
        height, upper = u(0.7, 1.3), u(0.35, 0.45)
        lower, level = upper * u(0.7, 1), u(0.3, 0.85) * height if random.random() < 0.6 else None
        return [Turned([lower, upper], [0, height], u(0.08, 0.1), 0, level)]
    height, along = u(1.0, 1.6), np.linspace(0, 1, 10)
    stem = height * u(0.35, 0.55)
    bowl = u(0.32, 0.45) * np.sqrt(np.clip(along * u(1.1, 1.8), 0, 1)) * (1 - u(0, 0.25) * along**3)
    radii = np.r_[u(0.28, 0.4), 0.06, 0.06, bowl + 0.04]
    heights = np.r_[0, 0.05, stem * 0.97, stem + (height - stem) * along]
    level = stem + u(0.3, 0.8) * (height - stem) if random.random() < 0.5 else None
    return [Turned(radii, heights, u(0.08, 0.1), stem, level)]


def _box(random, u):
    return [Box((u(0.2, 0.5), u(0.2, 0.5), u(0.15, 0.6)), u(0, np.pi), u(0.02, 0.06), random.random() < 0.5)]


def _teapot(random, u):
    height, belly = u(0.5, 0.8), u(0.42, 0.52)
    radii, heights = _smooth((0, height), np.array([u(0.26, 0.36), belly * 0.95, belly, belly * 0.85, u(0.12, 0.22)]), 14)
    knob = u(0.05, 0.09)
    top = height + u(0.12, 0.18)
    line = np.r_[radii, knob, knob], np.r_[heights, height + 0.05, top]
    body = Turned(*line, u(0.08, 0.1), 0, top, _bands(random, u, height), lid=height * u(0.86, 0.97))
    azimuth, low = u(0, 2 * np.pi), height * u(0.3, 0.45)
    start = body.radius_at(low) * 0.85
    spout = Spout(azimuth, start, low, start + u(0.35, 0.5), height * u(0.75, 0.95))
    middle = height * u(0.48, 0.58)
    opposite = azimuth + np.pi
    handle = Handle(opposite, body.radius_at(middle), middle, u(0.18, 0.28), height * u(0.26, 0.36), u(0.09, 0.13))
    return [body, handle, spout]


KINDS: dict[str, tuple[float, Callable]] = {  # how often, and its parts
    "cup": (0.18, _cup),
    "mug": (0.16, _mug),
    "cup and saucer": (0.08, _cup_and_saucer),
    "bowl": (0.12, _bowl),
    "plate": (0.08, _plate),
    "vase": (0.10, _vase),
    "bottle": (0.07, _bottle),
    "glass": (0.10, _glass),
    "box": (0.06, _box),
    "teapot": (0.05, _teapot),
}


def sample_object(random: np.random.Generator) -> Object:
    """An object of a random kind."""
    kind = str(random.choice(list(KINDS), p=[share for share, _ in KINDS.values()]))
    return Object(kind, KINDS[kind][1](random, lambda low, high: float(random.uniform(low, high))))
