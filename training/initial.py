"""Weights that training begins with, by the names of parameters: the real modules leave them empty or zero."""

import math

import torch
from torch import Tensor, nn

from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser
from sam3d_tvm.models.structure_flow.network_torch import StructureFlowModel

GAIN = 0.7  # of a matrix: deviation times the root of what a value is summed from
SMALL = 0.02
POSITIONS = 0.8  # size of sines and cosines as positions of patches
TOKENS_GAIN = 8  # of the last matrix before the tokens: gated layers make them small


def initialise(net: nn.Module, seed: int) -> nn.Module:
    """Matrices and filters at random, biases 0, norms 1; what modulates begins near 0, what leaves a network at 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1.0 if "rms" in name else 0.5)
            elif "norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif any(part in name for part in ("pos_emb", "token", "idx_emb")):
                parameter.normal_(0, SMALL, generator=random)
            elif name.endswith("bias"):
                parameter.zero_()
            elif "adaLN" in name or "emb_layers" in name:
                parameter.normal_(0, SMALL / 10, generator=random)
            elif "out_layer." in name and parameter.ndim == 2:
                parameter.zero_()
            else:
                parameter.normal_(0, GAIN / math.sqrt(parameter[0].numel()), generator=random)
    return net


def new_embedder(net: EmbedderFuser, seed: int) -> EmbedderFuser:
    """An `EmbedderFuser` to begin with: patches know where they are."""
    initialise(net, seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("backbone.pos_embed"):
                parameter[0, 1:] = waves(round((parameter.shape[1] - 1) ** 0.5), 2, parameter.shape[2]) * POSITIONS
            elif name.endswith(".w2.weight"):
                parameter.mul_(TOKENS_GAIN)
            elif name.endswith(("cls_token", "register_tokens")):
                parameter.mul_(1 / SMALL / 3)
    return net


def new_structure_flow(net: StructureFlowModel, seed: int) -> StructureFlowModel:
    """A `StructureFlowModel` to begin with: tokens of the shape know where they are."""
    initialise(net, seed)
    with torch.no_grad():
        positions = net.latent_mapping["shape"].pos_emb
        positions.copy_(waves(round(len(positions) ** (1 / 3)), 3, positions.shape[1]) * GAIN)
    return net


def waves(side: int, axes: int, channels: int) -> Tensor:
    """Sines and cosines of positions on a grid of `side` along each of `axes`: float32 [side^axes, channels], first axis
    slowest."""
    count = channels // (2 * axes)
    frequencies = 1.5 / 100 ** (torch.arange(count) / max(count, 1))
    grid = torch.meshgrid(*[torch.arange(side).float()] * axes, indexing="ij")
    angles = torch.stack(grid, -1).reshape(-1, axes, 1) * frequencies
    found = torch.cat([angles.sin(), angles.cos()], 2).flatten(1)
    return nn.functional.pad(found, (0, channels - found.shape[1]))
