"""Condition embedders in training: the tokens of a batch, and a first training on what can be told from a photo at once.

Generators learn slowly from a photo, as most of their error is noise. So an embedder first learns, with a small network on top
that is thrown away, to tell the components of the whole structure, the camera's rotation, the placement where there is a point
map, and the colours of the materials that are seen.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sam3d_tvm.models.condition_embedder.config import EmbedderFuserConfig
from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser
from training.dataset import Batch, Dataset
from training.initial import initialise, new_embedder
from training.loop import Randomness, train
from training.shapes import MATERIALS

NAME = "embedder"
COMPONENTS = 64  # of the whole structure
COMPONENTS_FROM = 1500  # objects
BATCH = 32
COLOUR_DEVIATION = 0.28


def tokens(net: EmbedderFuser, batch: Batch) -> Tensor:
    """What `EmbedderFuser.forward` makes of a batch, [B, L, C]; zeros as the tokens of point maps that are not there."""
    images = {"image": batch.image, "mask": batch.mask}
    parts = []
    for embedder, embed, project in zip(net.config.embedders, net.module_list, net.projection_nets, strict=True):
        for name, group in embedder.inputs:
            offset = net.idx_emb[net.config.groups[group]]
            if embedder.kind != "pointmap":
                parts.append(project(embed(images[name])) + offset)
                continue
            found = batch.image.new_zeros(len(batch.image), embedder.model.tokens, net.config.channels)
            if batch.pointed.any():
                there = project(embed(batch.pointmap[batch.pointed])) + offset
                found = found.index_copy(0, batch.pointed.nonzero()[:, 0], there)
            parts.append(found)
    return torch.cat(parts, 1)


class Pretext(nn.Module):
    """An embedder, and what tells `targets` from the first token and the mean of all tokens of each of its inputs."""

    def __init__(self, config: EmbedderFuserConfig, targets: int):
        super().__init__()
        self.fuser = EmbedderFuser(config)
        width = 2 * len(config.rows) * config.channels
        self.head = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, targets))

    def forward(self, batch: Batch) -> Tensor:
        found = tokens(self.fuser, batch)
        parts = [found[:, rows] for rows in self.fuser.config.rows.values()]
        return self.head(torch.cat([end for part in parts for end in (part[:, 0], part.mean(1))], 1))


def whole_components(data: Dataset) -> tuple[Tensor, Tensor]:
    """Mean [64 * 48] and basis [64 * 48, COMPONENTS] of structure latents, components of mean square 1 altogether; no more of
    them than objects."""
    latents = data.arrays["latent"][:COMPONENTS_FROM, 0].astype(np.float32).reshape(-1, 64 * 48)
    mean = latents.mean(0)
    centred = latents - mean
    square, weights = np.linalg.eigh(centred @ centred.T)  # of objects, which are fewer than numbers
    square, weights = square[-COMPONENTS:], weights[:, -COMPONENTS:]
    basis = centred.T @ weights / np.sqrt(square)
    return torch.from_numpy(mean), torch.from_numpy(basis / np.sqrt(np.mean(square / len(latents))))


def pretrain(config: EmbedderFuserConfig, data: Dataset, folder: Path, steps: int, tell: Callable[[str], None]) -> None:
    """Write the weights of a `Pretext` as `folder`/embedder.safetensors."""
    mean, basis = whole_components(data)
    sizes = [basis.shape[1], 6, 4, 3 * MATERIALS]
    net = Pretext(config, sum(sizes))
    new_embedder(net.fuser, 1)
    initialise(net.head, 2)

    def losses(net: Pretext, batch: Batch) -> dict[str, Tensor]:
        shape, rotation, placement, colours = net(batch).split(sizes, 1)
        wanted = (batch.latent.flatten(1) - mean) @ basis
        off = ((colours.unflatten(1, (MATERIALS, 3)) * COLOUR_DEVIATION + 0.5 - batch.palette) ** 2).mean(-1)
        pointed = batch.pointed.float()[:, None]
        return {
            "structure": ((shape - wanted) ** 2).mean(),
            "rotation": ((rotation - batch.rotation) ** 2).mean(),
            "placement": ((placement - batch.placement) ** 2 * pointed).sum() / (4 * pointed.sum()).clamp(min=1),
            "colour": (off * batch.seen).sum() / batch.seen.sum(),
        }

    def step(random: Randomness, _: float) -> dict[str, Tensor]:
        found = losses(net, data.sample(random.numpy, BATCH))
        total = found["structure"] + 0.3 * found["rotation"] + 0.1 * found["placement"] + found["colour"] / COLOUR_DEVIATION**2
        total.backward()
        return {name: value.detach() for name, value in found.items()} | {"colour": found["colour"].detach() ** 0.5}

    train(NAME, folder, net, steps, step, tell, seed=11, tell_every=250)


def pretrained(net: EmbedderFuser, folder: Path) -> EmbedderFuser:
    """`net` with the weights of `pretrain`, of which a model without point maps takes those that it has."""
    saved = load_file(folder / f"{NAME}.safetensors")
    own = {name.removeprefix("fuser."): value for name, value in saved.items() if name.startswith("fuser.")}
    missing = [name for name in net.state_dict() if name not in own]
    if missing:
        raise ValueError(f"{NAME}: expected weights of {missing[0]}, given none")
    net.load_state_dict({name: own[name] for name in net.state_dict()})
    return net
