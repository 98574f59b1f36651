"""SECOND's middle encoder, plain and residual: voxels of a LiDAR sweep, thinned out in stages; and the map seen from above."""

from types import ModuleType

import torch
from torch import nn

from tests.golden.networks.layers import Layers


def build(spconv: ModuleType, config: dict) -> nn.Module:
    return MiddleEncoder(spconv, config)


class MiddleEncoder(nn.Module):
    """Features [N, C] of voxels (batch, z, y, x) to a sparse tensor on a coarse grid."""

    def __init__(self, spconv: ModuleType, config: dict):
        super().__init__()
        layers = Layers(spconv, config)
        self.sparse_tensor = spconv.SparseConvTensor
        self.spatial_shape, self.batch_size = layers.spatial_shape, config["batch_size"]
        self.order = layers.children("")
        for name in self.order:
            single = f"{name}.0" in layers.trace
            setattr(self, name, layers.block(name) if single else layers.stage(name))

    def forward(self, features: torch.Tensor, indices: torch.Tensor, batch_size: int | torch.SymInt | None = None):
        batch_size = self.batch_size if batch_size is None else batch_size
        x = self.sparse_tensor(
            features=features, indices=indices.int(), spatial_shape=self.spatial_shape, batch_size=batch_size
        )
        for name in self.order:
            x = getattr(self, name)(x)
        return x


class BirdsEyeView(nn.Module):
    """The encoder's result as a dense map [B, C * D, H, W]; as many batch elements as the data has."""

    def __init__(self, encoder: MiddleEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, features: torch.Tensor, indices: torch.Tensor):
        batch_size = indices[:, 0].max().item() + 1
        dense = self.encoder(features, indices, batch_size).dense()
        n, c, d, h, w = dense.shape
        return dense.view(n, c * d, h, w)
