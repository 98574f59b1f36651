"""Structured latents in closed form: what the generator learns to give each voxel, and the decoders to read.

Of a voxel with the signed distance d at its middle and the unit normal n there, its own point of the surface is its middle less
d n. Its latents are the colour there in the photo's light (3), the normal (3), the distance (1) and a spare of zeros, each
brought to a mean near 0 and a deviation near 1.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3d_tvm.models.structure_decoder.voxels import prune
from training.dataset import GRID, OCCUPIED_BELOW, Dataset, field_of, occupied
from training.loop import Randomness
from training.photos import sample_views
from training.render import openness, surface_colours
from training.shapes import Object

CHANNELS = 8
COLOUR, NORMAL, DISTANCE = slice(0, 3), slice(3, 6), 6
COLOUR_MEAN, COLOUR_SCALE = 0.62, 0.29
NORMAL_SCALE = 3**-0.5  # a component's deviation where all directions are as frequent
DISTANCE_MEAN, DISTANCE_SCALE = -0.2, 0.42  # voxels
MOST_NOISE = 0.35
ROUNDING = 1e-3  # of a distance, in voxels
PRUNE_DISTANCE = 1  # as in the pipeline's config


@dataclass(frozen=True, eq=False)
class Described:
    """What latents say of N voxels: colours float32 [N, 3] in 0..1, normals float32 [N, 3], distances float32 [N] in voxels,
    negative inside."""

    colours: Tensor
    normals: Tensor
    distances: Tensor


@dataclass(frozen=True, eq=False)
class Voxels:
    """The voxels of an object and all but their colours.

    coords int32 [N, 4] of (0, x, y, z), ascending; normals float32 [N, 3]; distances float32 [N] in voxels; materials int64 [N]
    and openness float32 [N] of each voxel's point of the surface. mirrored: whether x is turned around.
    """

    coords: Tensor
    normals: Tensor
    distances: Tensor
    materials: Tensor
    openness: Tensor
    mirrored: bool

    def latents(self, palette: Tensor) -> Tensor:
        """float32 [N, 8] in the light of a photo, of which palette float32 [MATERIALS, 3] is known."""
        return encode(Described(surface_colours(palette, self.materials, self.openness), self.normals, self.distances))


class Objects:
    """The objects of a data set, made again from their seed: what their voxels are, beside what is in the files."""

    def __init__(self, data: Dataset, seed: int):
        self.data, self.seed = data, seed

    def get(self, row: int, mirrored: bool = False, reach: int | None = None, random: np.random.Generator | None = None):
        """The object of a row, and its voxels, or those at most `reach` from a random one of them along each axis.

        ValueError where the object is not the one that the data was made of.
        """
        made = sample_views(self.seed, int(self.data.arrays["index"][row]), 0)
        grid = self.data.occupied(np.array([row]))[0]
        thing = made[0]
        coords = pruned(grid[::-1] if mirrored else grid)
        if reach is not None:
            coords = coords[(np.abs(coords - coords[random.integers(len(coords))]) <= reach).all(1)]
        voxels = voxels_of(thing, mirrored, torch.from_numpy(coords))
        if not (voxels.distances < OCCUPIED_BELOW + ROUNDING).all():
            raise ValueError(f"seed: expected the one that the data was made from, given {self.seed}, whose objects are others")
        return thing, voxels

    def sample(self, random: np.random.Generator, reach: int | None = None) -> tuple[Object, Voxels, Tensor]:
        """A random object, its voxels as of `get`, and the palette of a random photo of it, float32 [MATERIALS, 3]."""
        row = int(random.integers(len(self.data)))
        palettes = self.data.arrays["palette"][row]
        return *self.get(row, False, reach, random), torch.from_numpy(palettes[random.integers(len(palettes))])


def noisy(latents: Tensor, randomness: Randomness) -> Tensor:
    """Latents [N, 8] as decoders meet them, of a generator that errs: with noise of a deviation of 0 to `MOST_NOISE`."""
    deviation = randomness.numpy.uniform(0, MOST_NOISE)
    return latents + deviation * torch.randn(latents.shape, generator=randomness.torch)


def pruned(occupied_grid: np.ndarray) -> np.ndarray:
    """The coordinates int32 [N, 4] that the pipeline makes of occupied voxels, bool [64, 64, 64]."""
    coords = np.argwhere(occupied_grid).astype(np.int32)
    return prune(np.ascontiguousarray(np.pad(coords, ((0, 0), (1, 0)))), PRUNE_DISTANCE)


def voxels_of(thing: Object, mirrored: bool = False, coords: Tensor | None = None) -> Voxels:
    """The voxels of an object, or of its mirror image, x -> -x. coords: others than its own, int32 [N, 4] on the same grid."""
    if coords is None:
        grid = occupied(field_of(thing))
        coords = torch.from_numpy(pruned(grid[::-1] if mirrored else grid))
    sign = torch.tensor([-1.0 if mirrored else 1.0, 1, 1])
    points = middles(coords, GRID) * sign
    distances, normals = thing.distance(points), thing.normals(points)
    places = points - distances[:, None] * normals
    open_part = openness(thing, places, normals)
    return Voxels(coords, normals * sign, distances * GRID, thing.materials(places), open_part, mirrored)


def middles(coords: Tensor, size: int) -> Tensor:
    """The middles of cells int32 [N, 4] of a grid of `size` along each axis: float32 [N, 3] in the cube."""
    return (coords[:, 1:] + 0.5) / size - 0.5


def encode(described: Described) -> Tensor:
    """Latents float32 [N, 8]."""
    parts = [
        (described.colours - COLOUR_MEAN) / COLOUR_SCALE,
        described.normals / NORMAL_SCALE,
        (described.distances[:, None] - DISTANCE_MEAN) / DISTANCE_SCALE,
    ]
    latents = torch.cat(parts, 1)
    return F.pad(latents, (0, CHANNELS - latents.shape[1]))


def decode(latents: Tensor) -> Described:
    """What latents [N, 8] say; ValueError for another shape. Colours may be out of range, and normals are made unit vectors."""
    if latents.ndim != 2 or latents.shape[1] != CHANNELS:
        raise ValueError(f"latents: expected [N, {CHANNELS}], given {list(latents.shape)}")
    return Described(
        latents[:, COLOUR] * COLOUR_SCALE + COLOUR_MEAN,
        F.normalize(latents[:, NORMAL], dim=1),
        latents[:, DISTANCE] * DISTANCE_SCALE + DISTANCE_MEAN,
    )
