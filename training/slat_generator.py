"""Training of the generator of structured latents together with its condition embedder: flow matching on true voxels.

x_t = (1 - t) noise + t latents, whose velocity latents - noise is learnt. Thousands of voxels share a region's colour, so at
t > 0.05 their mean tells it and the photo is not needed: what teaches to read colours from the photo are times near 0, and most
samples are taken there.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sam3d_tvm.config import PipelineConfig
from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser
from training.dataset import HELD_OUT_SEED, PHOTOS, SEED, Batch, Dataset
from training.embedder import pretrained, tokens
from training.initial import initialise, new_embedder
from training.latents import COLOUR, DISTANCE, NORMAL, Objects, decode
from training.loop import Randomness, Rates, train
from training.networks import SlatGeneratorNetwork

NAME = "slat_generator"
OBJECTS = 4  # of a step
DROPPED = 0.1  # of the conditions
AT_START, NEAR_START = 0.4, 0.3  # of the samples are at t = 0, and below `NEAR`
NEAR = 0.15
PART, WHOLE = 0.4, 0.25  # of an object's voxels that a sample sees, but for this share of the samples, which see them all
ALL_WHOLE_FROM = 0.85  # of all steps
TIME_SCALE = 1000.0
CHECKED = 8  # held-out objects
CHECK_STEPS, CHECK_EVERY = 8, 250
RATES = Rates(matrices=4e-3, rest=2e-3, level=0.3, average=0.995)


class SlatGenerator(nn.Module):
    """Both models, by the names of the pipeline's."""

    def __init__(self, config: PipelineConfig):
        super().__init__()
        self.slat_condition_embedder = EmbedderFuser(config.slat_condition_embedder)
        self.slat_generator = SlatGeneratorNetwork(config.slat_generator)


def sample_time(random: np.random.Generator) -> float:
    """A time in 0..1, much of the time exactly 0."""
    kind, u = random.random(2)
    if kind < AT_START:
        return 0.0
    return NEAR * u * u if kind < AT_START + NEAR_START else u / (2 - u)


def slab(coords: Tensor, part: float, random: np.random.Generator) -> Tensor:
    """Which of coords int32 [N, 4] lie in a slab at a random place, of any direction, that holds `part` of them: bool [N]."""
    direction = torch.from_numpy(random.standard_normal(3)).float()
    rank = (coords[:, 1:].float() @ direction).argsort().argsort()
    first = random.random() * (1 - part) * len(coords)
    return (rank >= first) & (rank < first + part * len(coords))


def sample(flow: SlatGeneratorNetwork, coords: Tensor, cond: Tensor, seed: int, rescale: float, steps: int) -> Tensor:
    """Latents float32 [N, C] by Euler steps from noise, without guidance, at the times of `sampler.flow_schedule`.

    coords int32 [N, 4], cond [1, L, cond_channels].
    """
    x = torch.randn(len(coords), flow.config.in_channels, generator=torch.Generator().manual_seed(seed))
    times = np.linspace(0, 1, steps + 1)
    times = times / (1 + (rescale - 1) * (1 - times))
    for start, stop in pairwise(times):
        t = torch.tensor([start * TIME_SCALE], dtype=torch.float32)
        x = x + float(stop - start) * flow(coords, x, t, cond)
    return x


def colour_error(found: Tensor, true: Tensor) -> float:
    """The mean absolute difference of colours of latents [N, 8], in 0..1."""
    return (decode(found).colours - decode(true).colours).abs().mean().item()


def train_slat_generator(
    config: PipelineConfig,
    data: Dataset,
    held_out: Dataset,
    folder: Path,
    steps: int,
    tell: Callable[[str], None],
    seeds: tuple[int, int] = (SEED, HELD_OUT_SEED),
) -> None:
    """Write the weights of a `SlatGenerator`; `held_out`: objects to judge it by. seeds: of the objects of both data sets."""
    net = SlatGenerator(config)
    pretrained(new_embedder(net.slat_condition_embedder, 1), folder)
    initialise(net.slat_generator, 6)
    objects, others = Objects(data, seeds[0]), Objects(held_out, seeds[1])
    rescale = config.slat_sampling.rescale_t

    def step(randomness: Randomness, part: float) -> dict[str, Tensor]:
        random = randomness.numpy
        rows, photos, mirrored = random.integers(0, [[len(data)] * OBJECTS, [PHOTOS] * OBJECTS, [2] * OBJECTS])
        batch = data.batch(rows, photos, mirrored)
        whole = tokens(net.slat_condition_embedder, batch)
        cond = whole.detach().requires_grad_()  # each object is done by itself, and what it needs is let go of
        squares: dict[str, list[Tensor]] = {"at 0": []} | {name: [] for name in ("colour", "normal", "distance")}
        for b, row in enumerate(rows):
            _, voxels = objects.get(row, bool(mirrored[b]))
            coords, x1 = voxels.coords, voxels.latents(batch.palette[b])
            if part < ALL_WHOLE_FROM and random.random() >= WHOLE:
                kept = slab(coords, PART, random)
                coords, x1 = coords[kept], x1[kept]
            x0, t = torch.randn(x1.shape, generator=randomness.torch), sample_time(random)
            told = cond[b : b + 1] * float(random.random() >= DROPPED)
            v = net.slat_generator(coords, (1 - t) * x0 + t * x1, torch.tensor([t * TIME_SCALE], dtype=torch.float32), told)
            square = (v - (x1 - x0)) ** 2
            (square.mean() / OBJECTS).backward()
            mean = square.detach().mean(0)
            for name, channels in (("colour", COLOUR), ("normal", NORMAL), ("distance", DISTANCE)):
                squares[name].append(mean[channels].mean())
            if t == 0:
                squares["at 0"].append(mean[COLOUR].mean())
        whole.backward(cond.grad)
        return {name: torch.stack(values).mean() for name, values in squares.items() if values}

    count = min(CHECKED, len(held_out))
    seen = held_out.batch(np.arange(count), np.zeros(count, int), np.zeros(count, int))
    checked = [others.get(row)[1] for row in range(count)]

    def check(average: SlatGenerator) -> str:
        return told_colours(average, seen, checked, rescale)

    train(NAME, folder, net, steps, step, tell, seed=16, rates=RATES, check=check, check_every=CHECK_EVERY)


def told_colours(net: SlatGenerator, batch: Batch, objects: list, rescale: float) -> str:
    """The error of colours on objects whose photos are in `batch`: sampled, without a photo, by one colour, and by one step."""
    cond = tokens(net.slat_condition_embedder, batch)
    errors: dict[str, list[float]] = {}
    for b, voxels in enumerate(objects):
        true = voxels.latents(batch.palette[b])
        found = {
            "sampled": sample(net.slat_generator, voxels.coords, cond[b : b + 1], b, rescale, CHECK_STEPS),
            "in one step": sample(net.slat_generator, voxels.coords, cond[b : b + 1], b, rescale, 1),
            "without a photo": sample(net.slat_generator, voxels.coords, 0 * cond[b : b + 1], b, rescale, CHECK_STEPS),
            "one colour an object": true.mean(0, keepdim=True).expand_as(true),
        }
        for name, latents in found.items():
            errors.setdefault(name, []).append(colour_error(latents, true))
        normals = (decode(found["sampled"]).normals * decode(true).normals).sum(1).mean().item()
        errors.setdefault("cosine of normals", []).append(normals)
    return "colours off " + ", ".join(f"{name} {np.mean(values):.3f}" for name, values in errors.items())
