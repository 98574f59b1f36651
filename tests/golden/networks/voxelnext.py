"""VoxelNeXt's backbone: scales merged as rows of one tensor, seen from above, then convolutions in two dimensions."""

from types import ModuleType

import torch
from torch import nn

from tests.golden.networks.layers import Layers

FLAT = ("conv_out", "shared_conv")  # in two dimensions
MERGED = 3  # the last scales of those in three


def build(spconv: ModuleType, config: dict) -> nn.Module:
    return VoxelNeXt(spconv, config)


class Merge(nn.Module):
    """Rows of some scales as one sparse tensor without z: rows that meet are added up."""

    def __init__(self, spconv: ModuleType):
        super().__init__()
        self.sparse_tensor = spconv.SparseConvTensor

    def forward(self, scales):
        first = scales[0]
        for number, x in enumerate(scales[1:], 1):
            x.indices[:, 1:] *= 2**number
        x = first.replace_feature(torch.cat([x.features for x in scales]))
        x.indices = torch.cat([x.indices for x in scales])
        indices, inverse = torch.unique(x.indices[:, [0, 2, 3]], dim=0, return_inverse=True)
        features = x.features.new_zeros((indices.shape[0], x.features.shape[1]))
        features.index_add_(0, inverse, x.features)
        return self.sparse_tensor(
            features=features, indices=indices, spatial_shape=x.spatial_shape[1:], batch_size=x.batch_size
        )


class VoxelNeXt(nn.Module):
    """Features [N, C] of voxels (batch, z, y, x) to a sparse tensor with (batch, y, x)."""

    def __init__(self, spconv: ModuleType, config: dict):
        super().__init__()
        layers = Layers(spconv, config)
        self.sparse_tensor = spconv.SparseConvTensor
        self.spatial_shape, self.batch_size = layers.spatial_shape, config["batch_size"]
        self.order = [name for name in layers.children("") if name not in FLAT]
        for name in (*self.order, *FLAT):
            single = f"{name}.0" in layers.trace
            setattr(self, name, layers.block(name) if single else layers.stage(name))
        self.merged = Merge(spconv)

    def forward(self, features: torch.Tensor, indices: torch.Tensor):
        x = self.sparse_tensor(
            features=features, indices=indices.int(), spatial_shape=self.spatial_shape, batch_size=self.batch_size
        )
        scales = []
        for name in self.order:
            x = getattr(self, name)(x)
            scales.append(x)
        x = self.merged(scales[-MERGED:])
        return self.shared_conv(self.conv_out(x))
