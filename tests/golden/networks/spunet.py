"""SpUNet: a U-Net that labels voxels, with its grid's size taken from the data, as Pointcept does, or constant."""

from collections import OrderedDict
from types import ModuleType

import torch
from torch import nn

from tests.golden.networks.layers import Layers

MARGIN = 96  # what the grid is larger than the largest coordinate


def build(spconv: ModuleType, config: dict, constant_shape: bool = False) -> nn.Module:
    return SpUNet(spconv, config, constant_shape)


class SpUNet(nn.Module):
    """Features [N, C] of voxels (batch, x, y, z) to scores for each of them."""

    def __init__(self, spconv: ModuleType, config: dict, constant_shape: bool):
        super().__init__()
        layers = Layers(spconv, config)
        self.sparse_tensor, self.batch_size = spconv.SparseConvTensor, config["batch_size"]
        self.spatial_shape = layers.spatial_shape if constant_shape else None
        self.stages = len(layers.children("down"))
        self.conv_input = layers.block("conv_input")

        def blocks(name):  # a stage may have none
            return spconv.SparseSequential(
                OrderedDict((child, layers.residual_block(f"{name}.{child}")) for child in layers.children(name))
            )

        stages = range(self.stages)
        self.down = nn.ModuleList([layers.block(f"down.{s}") for s in stages])
        self.enc = nn.ModuleList([blocks(f"enc.{s}") for s in stages])
        self.up = nn.ModuleList([layers.block(f"up.{s}") for s in stages])
        self.dec = nn.ModuleList([blocks(f"dec.{s}") for s in stages])
        self.final = layers.conv("final") if "final" in layers.trace else spconv.Identity()

    def forward(self, features: torch.Tensor, indices: torch.Tensor):
        shape = self.spatial_shape
        if shape is None:
            shape = (indices.max(0).values[1:] + MARGIN).tolist()
        x = self.sparse_tensor(
            features=features, indices=indices.int().contiguous(), spatial_shape=shape, batch_size=self.batch_size
        )
        x = self.conv_input(x)
        skips = [x]
        for s in range(self.stages):
            x = self.enc[s](self.down[s](x))
            skips.append(x)
        skips.pop()
        for s in reversed(range(self.stages)):
            x = self.up[s](x)
            x = x.replace_feature(torch.cat((x.features, skips.pop().features), dim=1))
            x = self.dec[s](x)
        return self.final(x)
