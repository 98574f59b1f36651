"""Training of the structure generator together with its condition embedder: flow matching with step sizes.

x_t = (1 - t) noise + t latent, whose velocity latent - noise is learnt. As in shortcut models (K. Frans et al., "One step
diffusion via shortcut models", arXiv:2410.12557) a part of the samples is told the length d of a step, and learns the mean
velocity of two steps of half that length, taken by the averaged network.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sam3d_tvm.config import PipelineConfig
from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser
from sam3d_tvm.models.structure_flow.network_torch import StructureFlowModel
from training.dataset import OCCUPIED_BELOW, Batch, Dataset
from training.embedder import pretrained, tokens
from training.initial import new_embedder, new_structure_flow
from training.loop import Randomness, averaged, train
from training.structure_latent import CUT, StructureLatent

NAME = "structure_generator"
BATCH = 32
DROPPED = 0.1  # of the conditions
SHORTCUTS = 0.25  # of a batch, once `SHORTCUTS_FROM` of all steps are done
SHORTCUTS_FROM = 0.4
LENGTHS = (2, 4, 8, 16)  # a step is 1 / length
TIME_SCALE = 1000.0
WEIGHTS = {"shape": 1.0, "6drotation_normalized": 0.1, "translation": 0.03, "scale": 0.03, "translation_scale": 0.01}
CHECKED = 32  # held-out objects
CHECK_STEPS, RESCALE = 8, 2.0
OCCUPIED_FIELD = OCCUPIED_BELOW / CUT  # where the cut field has the edge of what is occupied

Latents = dict[str, Tensor]


class StructureGenerator(nn.Module):
    """Both models, by the names of the pipeline's."""

    def __init__(self, config: PipelineConfig):
        super().__init__()
        self.ss_condition_embedder = EmbedderFuser(config.ss_condition_embedder)
        self.ss_generator = StructureFlowModel(config.ss_generator)


def targets(batch: Batch) -> Latents:
    """What the generator is to give for a batch: latents by name, [B, T, C]."""
    place, scale = batch.placement[:, None, :3], batch.placement[:, None, 3:]
    return {
        "shape": batch.latent,
        "6drotation_normalized": batch.rotation[:, None],
        "translation": place,
        "scale": scale.expand(-1, -1, 3),
        "translation_scale": torch.zeros_like(scale),
    }


def sample(flow: StructureFlowModel, cond: Tensor, seed: int, steps: int = CHECK_STEPS, shortcut: bool = False) -> Latents:
    """Euler steps from noise, without guidance; the steps of `sampler.flow_schedule`."""
    random = torch.Generator().manual_seed(seed)
    x = {
        name: torch.randn(len(cond), latent.token_len, latent.in_channels, generator=random)
        for name, latent in flow.config.latent_mapping.items()
    }
    times = np.linspace(0, 1, steps + 1)
    times = times if shortcut else times / (1 + (RESCALE - 1) * (1 - times))
    d = torch.full((len(cond),), TIME_SCALE / steps if shortcut else 0.0)
    for start, stop in pairwise(times):
        v = flow(x, torch.full((len(cond),), start * TIME_SCALE, dtype=torch.float32), d, cond)
        x = {name: x[name] + float(stop - start) * v[name] for name in x}
    return x


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of voxels bool [B, X, Y, Z]: float64 [B]."""
    return (a & b).sum((1, 2, 3)) / np.maximum((a | b).sum((1, 2, 3)), 1)


def train_structure_generator(
    config: PipelineConfig,
    data: Dataset,
    held_out: Dataset,
    latent: StructureLatent,
    folder: Path,
    steps: int,
    tell: Callable[[str], None],
) -> None:
    """Write the weights of a `StructureGenerator`; `held_out`: objects to judge it by."""
    net = StructureGenerator(config)
    pretrained(new_embedder(net.ss_condition_embedder, 1), folder)
    new_structure_flow(net.ss_generator, 3)
    average = averaged(net)
    rows = np.arange(min(CHECKED, len(held_out)))
    truth = held_out.occupied(rows)

    def step(random: Randomness, part: float) -> dict[str, Tensor]:
        batch = data.sample(random.numpy, BATCH)
        x1 = targets(batch)
        u = torch.rand(BATCH, generator=random.torch)
        t = u / (2 - u)  # more of small times
        d = torch.zeros(BATCH)
        count = int(SHORTCUTS * BATCH) if part >= SHORTCUTS_FROM else 0
        if count:
            lengths = torch.tensor(random.numpy.choice(LENGTHS, count))
            d[:count] = 1 / lengths
            t[:count] = torch.tensor(random.numpy.integers(0, lengths.numpy())) / lengths
        x0 = {name: torch.randn(x.shape, generator=random.torch) for name, x in x1.items()}
        at = t[:, None, None]
        xt = {name: (1 - at) * x0[name] + at * x1[name] for name in x1}
        kept = (torch.rand(BATCH, generator=random.torch) >= DROPPED).float()
        kept[:count] = 1.0
        cond = tokens(net.ss_condition_embedder, batch) * kept[:, None, None]
        wanted = {name: x1[name] - x0[name] for name in x1}
        if count:
            with torch.no_grad():
                mean = _two_halves(
                    average.ss_generator, {name: x[:count] for name, x in xt.items()}, t[:count], d[:count], cond[:count]
                )
            wanted = {name: torch.cat([mean[name], v[count:]]) for name, v in wanted.items()}
        v = net.ss_generator(xt, t * TIME_SCALE, d * TIME_SCALE, cond)
        losses = {name: ((v[name] - wanted[name])[count:] ** 2).mean() for name in v}
        total = sum(WEIGHTS[name] * ((v[name] - wanted[name]) ** 2).mean() for name in v)
        total.backward()
        found = {"shape": losses["shape"], "rotation": losses["6drotation_normalized"], "translation": losses["translation"]}
        if count:
            found["shortcut"] = ((v["shape"] - wanted["shape"])[:count] ** 2).mean()
        return {name: value.detach() for name, value in found.items()}

    def check(average: StructureGenerator) -> str:
        batch = held_out.batch(rows, np.zeros(len(rows), int), np.zeros(len(rows), int))
        cond = tokens(average.ss_condition_embedder, batch)

        def overlap(cond: Tensor, **options) -> float:
            latents = sample(average.ss_generator, cond, 0, **options)["shape"].numpy()
            # decoded linearly, for want of the decoder
            return float(intersection_over_union(latent.decode(latents) < OCCUPIED_FIELD, truth).mean())

        return (
            f"overlap of {len(rows)} held-out objects {overlap(cond):.3f}, with another photo {overlap(cond.roll(1, 0)):.3f}, "
            f"in 4 shortcuts {overlap(cond, steps=4, shortcut=True):.3f}"
        )

    train(NAME, folder, net, steps, step, tell, seed=12, average=average, check=check, check_every=500)


def _two_halves(flow: StructureFlowModel, x: Latents, t: Tensor, d: Tensor, cond: Tensor) -> Latents:
    """The mean velocity of two steps of half the length d [B], from x at t [B]; the shortest are told 0, as is a plain flow."""
    half = d / 2
    told = torch.where(half < 1 / LENGTHS[-1] - 1e-6, torch.zeros_like(half), half) * TIME_SCALE
    first = flow(x, t * TIME_SCALE, told, cond)
    between = {name: x[name] + half[:, None, None] * first[name] for name in x}
    second = flow(between, (t + half) * TIME_SCALE, told, cond)
    return {name: (first[name] + second[name]) / 2 for name in x}
