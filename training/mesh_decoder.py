"""The mesh decoder, trained on the signed distance and the colours at the corners of the cells that it gives.

`sam3d_tvm.mesh.flexicubes` takes the mean of what the cells around a corner say. Where no cell is given the distance is 1, so
it is given in units of `CUT` cells, and cut there. What else a cell has, to move corners and weigh crossings, stays near 0.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3d_tvm.mesh.flexicubes import COLOR, DEFORM, GAMMA, SDF
from sam3d_tvm.mesh.flexicubes_tables import CORNERS
from sam3d_tvm.models.mesh_decoder.config import MeshDecoderConfig
from training.dataset import SEED, Dataset
from training.initial import initialise
from training.latents import Objects, noisy
from training.loop import Randomness, Rates, train
from training.networks import MeshDecoderNetwork
from training.render import openness, surface_colours
from training.shapes import Object

NAME = "mesh_decoder"
REACHES = (8, 14)  # voxels around one, of which a step is made; first, and from `WIDER_FROM` of all steps on
WIDER_FROM = 0.75
CUT = 4.0  # cells
NEAR = 3.0  # cells from the surface, within which a corner's distance weighs more and its colour counts
FAR_WEIGHT = 0.2
REGULAR = 0.01
RATES = Rates(matrices=4e-3, rest=4e-3, level=0.2, average=0.99)


def corner_targets(
    thing: Object, mirrored: bool, palette: Tensor, cells: Tensor, resolution: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of cells int32 [M, 4] of a grid of `resolution`: signed distances of their corners in cells, float32 [M, 8]; which are
    near the surface, bool [M, 8]; of these R corners in their order, colour and normal, float32 [R, 6] in 0..1."""
    side = resolution + 1
    corners = cells[:, None, 1:].long() + torch.from_numpy(CORNERS)  # [M, 8, 3]
    numbers, row = torch.unique((corners[..., 0] * side + corners[..., 1]) * side + corners[..., 2], return_inverse=True)
    places = torch.stack([numbers // side**2, numbers // side % side, numbers % side], 1)
    sign = torch.tensor([-1.0 if mirrored else 1.0, 1, 1])
    points = (places / resolution - 0.5) * sign  # [P, 3]
    distances = thing.distance(points)
    near = distances.abs() * resolution < NEAR
    points = points[near]
    normals = thing.normals(points)
    surface = points - distances[near][:, None] * normals
    colours = surface_colours(palette, thing.materials(surface), openness(thing, surface, normals))
    values = torch.zeros(len(numbers), 6)
    values[near] = torch.cat([colours, (normals * sign + 1) / 2], 1)
    near = near[row]
    return distances[row] * resolution, near, values[row][near]


def train_mesh_decoder(
    config: MeshDecoderConfig, data: Dataset, folder: Path, steps: int, tell: Callable[[str], None], seed: int = SEED
) -> None:
    """Write the weights of a decoder, trained on a part of an object a step. `seed`: of the objects in `data`."""
    net, objects = initialise(MeshDecoderNetwork(config), 5), Objects(data, seed)
    resolution = config.out_resolution

    def step(randomness: Randomness, part: float) -> dict[str, float]:
        thing, voxels, palette = objects.sample(randomness.numpy, REACHES[part >= WIDER_FROM])
        raw, cells = net(voxels.coords, noisy(voxels.latents(palette), randomness))  # [M, 101], [M, 4]
        distances, near, values = corner_targets(thing, voxels.mirrored, palette, cells, resolution)
        found = raw[:, SDF] - 1 / resolution
        weights = torch.where(near, 1.0, FAR_WEIGHT)
        logits = raw[:, COLOR].unflatten(1, (8, 6))[near]
        off = (found - (distances / CUT).clamp(-1, 1)).abs()
        losses = {
            "distance": (off * weights).mean(),
            "colour": F.l1_loss(logits[:, :3].sigmoid(), values[:, :3]),
            "normal": 0.1 * F.l1_loss(logits[:, 3:].sigmoid(), values[:, 3:]),
            "rest": REGULAR * (raw[:, DEFORM.start : GAMMA + 1] ** 2).mean(),
        }
        sum(losses.values()).backward()
        wrong = ((found < 0) != (distances < 0)) & (distances.abs() > 0.5)
        return {name: loss.item() for name, loss in losses.items()} | {"wrong signs": wrong.float().mean().item()}

    train(NAME, folder, net, steps, step, tell, seed=15, rates=RATES)
