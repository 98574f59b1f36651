"""The Gaussian decoder, trained on what Gaussians should be: no picture is rendered.

Where the surface is near a voxel is known from its latents, so the Gaussians of a voxel are discs that lie on it. What they are
to be was tried on true objects: with `INSET` and `DEVIATIONS` as below, splats of five of them were 31 to 43 dB from the true
pictures, of 128 pixels; with centres on the surface itself, 22 to 34.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3d_tvm.models.gaussian_decoder.config import GaussianDecoderConfig
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, WIDTHS, Representation, offset_perturbation
from training.dataset import GRID, SEED, Dataset
from training.initial import initialise
from training.latents import Described, Objects, decode, noisy
from training.loop import Randomness, Rates, train
from training.networks import GaussianDecoderNetwork

NAME = "gaussian_decoder"
REACH = 14  # voxels around one, of which a step is made
INSET = 0.45  # voxels that centres lie below the surface, so that discs of this width end where the object does
DEVIATIONS = (0.35, 0.35, 0.08)  # of a disc, in voxels
OPACITY = 0.97
LARGEST_OFFSET = 0.93  # of how far a Gaussian may be from the middle of its voxel
REFERENCE = (0.5, 0.3, 0.81)  # where discs are turned from; at its opposite, where few surfaces face, turning is not continuous
WEIGHTS = {"_xyz": 1.0, "_features_dc": 1.0, "_scaling": 0.05, "_rotation": 1.0, "_opacity": 0.05}
RATES = Rates(matrices=4e-3, rest=5e-3, level=0.1, average=0.99)


def targets(described: Described, representation: Representation) -> dict[str, Tensor]:
    """What the raw features of N voxels and G Gaussians each should be, by name: [N, G, width] after lr, and _xyz as the offset
    from the middle in voxels."""
    start = torch.tanh(torch.from_numpy(offset_perturbation(representation))) * representation.voxel_size / 2  # [G, 3], voxels
    normals, distances = described.normals[:, None], described.distances[:, None, None]  # [N, 1, 3], [N, 1, 1]
    height = distances + (normals * start).sum(-1, keepdim=True) + INSET  # above where it should be
    most = LARGEST_OFFSET * representation.voxel_size / 2
    n, count = len(described.normals), representation.num_gaussians
    wide = torch.tensor(DEVIATIONS) / GRID
    wide = (wide**2 - representation.kernel_size_3d**2).clamp(min=1e-12).sqrt()
    of_bias = math.log(math.expm1(representation.scaling_bias))
    logit = math.log(OPACITY / (1 - OPACITY)) - math.log(representation.opacity_bias / (1 - representation.opacity_bias))
    return {
        "_xyz": (start - height * normals).clamp(-most, most),
        "_features_dc": ((described.colours - 0.5) / CONSTANT_HARMONIC)[:, None].expand(n, count, 3).float(),
        "_scaling": (torch.log(torch.expm1(wide)) - of_bias).expand(n, count, 3),
        "_rotation": (quaternions(described.normals) - torch.tensor([1.0, 0, 0, 0]))[:, None].expand(n, count, 4),
        "_opacity": torch.full((n, count, 1), logit),
    }


def quaternions(normals: Tensor) -> Tensor:
    """Unit quaternions (w, x, y, z) [N, 4] that turn the z axis to normals [N, 3]: to `REFERENCE` first and from there on."""
    reference = F.normalize(torch.tensor(REFERENCE), dim=0)
    first = _shortest(torch.tensor([0.0, 0, 1]).expand_as(normals), reference.expand_as(normals))
    then = _shortest(reference.expand_as(normals), normals)
    (w, u), (a, v) = ((q[:, :1], q[:, 1:]) for q in (then, first))
    return torch.cat([w * a - (u * v).sum(1, keepdim=True), w * v + a * u + torch.linalg.cross(u, v)], 1)


def _shortest(source: Tensor, target: Tensor) -> Tensor:
    """The quaternions [N, 4] of the shortest turn between unit vectors [N, 3]."""
    half = torch.cat([1 + (source * target).sum(1, keepdim=True), torch.linalg.cross(source, target)], 1)
    return F.normalize(half, dim=1)


def attributes(raw: Tensor, representation: Representation) -> dict[str, Tensor]:
    """Of the decoder's features [N, channels] what `targets` has."""
    found = {
        name: representation.lr[name] * raw[:, part].reshape(len(raw), -1, WIDTHS[name])
        for name, part in representation.layout.items()
    }
    start = torch.from_numpy(offset_perturbation(representation))
    found["_xyz"] = torch.tanh(found["_xyz"] + start) * representation.voxel_size / 2
    return found


def new_network(config: GaussianDecoderConfig) -> GaussianDecoderNetwork:
    """An untrained decoder, whose Gaussians are already as wide and as opaque as they should be."""
    net = initialise(GaussianDecoderNetwork(config), 4)
    layout = config.representation.layout
    any_voxel = targets(decode(torch.ones(1, config.latent_channels)), config.representation)
    with torch.no_grad():
        for name in ("_scaling", "_opacity"):
            net.out_layer.bias[layout[name]] = any_voxel[name].flatten() / config.representation.lr[name]
    return net


def train_gaussian_decoder(
    config: GaussianDecoderConfig, data: Dataset, folder: Path, steps: int, tell: Callable[[str], None], seed: int = SEED
) -> None:
    """Write the weights of a decoder, trained on a part of an object a step. `seed`: of the objects in `data`."""
    net, objects = new_network(config), Objects(data, seed)

    def step(randomness: Randomness, part: float) -> dict[str, float]:
        _, voxels, palette = objects.sample(randomness.numpy, REACH)
        latents = voxels.latents(palette)
        found = attributes(net(voxels.coords, noisy(latents, randomness)), config.representation)
        wanted = targets(decode(latents), config.representation)
        losses = {name: WEIGHTS[name] * F.mse_loss(found[name], wanted[name]) for name in found}
        sum(losses.values()).backward()
        return {name: loss.item() for name, loss in losses.items()}

    train(NAME, folder, net, steps, step, tell, seed=14, rates=RATES)
