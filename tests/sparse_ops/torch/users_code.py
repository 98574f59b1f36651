"""What a user wrote with spconv: blocks, containers and wrappers that look at classes and make tensors themselves."""

import spconv.pytorch as spconv
import torch
from torch import nn

from tests.sparse_ops.torch.clouds import SHAPE


class Block(spconv.SparseModule):
    """A residual block as OpenPCDet has it."""

    def __init__(self, key: str):
        super().__init__()
        self.conv = spconv.SubMConv3d(4, 4, 3, bias=False, indice_key=key)
        self.norm, self.relu = nn.BatchNorm1d(4), nn.ReLU()

    def forward(self, x):
        assert isinstance(x, spconv.SparseConvTensor)
        y = self.conv(x)
        y = y.replace_feature(self.norm(y.features))
        return y.replace_feature(self.relu(y.features + x.features))


class Inherits(spconv.SparseSequential):
    """A container without a forward of its own."""


class Own(spconv.SparseSequential):
    """A container with one."""

    def forward(self, x):
        for module in self._modules.values():
            if spconv.modules.is_spconv_module(module):
                x = module(x)
            elif isinstance(x, spconv.SparseConvTensor):
                x = x.replace_feature(module(x.features))
        return super().forward(x.replace_feature(x.features * 0.5))


class Named(spconv.SubMConv3d):
    """A layer without a forward of its own."""

    answer = 42


class OwnForward(spconv.SubMConv3d):
    """A layer with one."""

    def forward(self, x):
        return super().forward(x)


class Voxels:
    """A tensor of a user's around spconv's, as TRELLIS has it."""

    def __init__(self, data):
        assert isinstance(data, spconv.SparseConvTensor)
        self.data = data

    def replace(self, feats):
        x = self.data
        data = spconv.SparseConvTensor(
            *(x.features.reshape(x.features.shape[0], -1), x.indices, x.spatial_shape, x.batch_size),
            *(x.grid, x.voxel_num, x.indice_dict),
        )
        data._features = feats
        for name in ("benchmark", "benchmark_record", "thrust_allocator", "_timer", "force_algo", "int8_scale"):
            setattr(data, name, getattr(x, name))
        return Voxels(data)


class Wrapped(nn.Module):
    """A layer on the user's tensors."""

    def __init__(self):
        super().__init__()
        self.conv = spconv.SubMConv3d(4, 4, 3, bias=False)

    def forward(self, x: Voxels) -> Voxels:
        return Voxels(self.conv(x.data))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Inherits(spconv.SubMConv3d(4, 4, 3, bias=False, indice_key="stem"), nn.BatchNorm1d(4), nn.ReLU())
        down = spconv.SparseConv3d(4, 4, 3, 2, 1, bias=False, indice_key="down", record_voxel_count=True)
        self.body = Own(Block("a"), nn.ReLU())
        self.down = spconv.SparseSequential(down, Named(4, 4, 3, bias=False, indice_key="b"), nn.ReLU(), Block("b"))
        self.shared = self.down[3]
        self.wrapped = Wrapped()
        self.up = spconv.SparseInverseConv3d(4, 4, 3, "down", bias=False)
        self.tables = spconv.SparseSequential(spconv.ConcatTable().add(spconv.SparseIdentity()).add(nn.Identity()))
        self.join, self.pool, self.dense = spconv.JoinTable(), spconv.SparseMaxPool3d(2), spconv.ToDense()

    def forward(self, features, indices):
        x = spconv.SparseConvTensor(features, indices, SHAPE, 1)
        x = self.shared(self.down(self.body(self.stem(x))))
        wrapped = self.wrapped(Voxels(x)).replace(x.features * 2)
        x = self.up(self.wrapped(wrapped).data)
        assert isinstance(x, spconv.SparseConvTensor)
        return self.dense(self.pool(self.join(self.tables(x))))


class DataDecide(Network):
    """Extents of the grid are the largest coordinates plus some, as Pointcept has it."""

    def forward(self, features, indices):
        shape = torch.add(torch.max(indices[:, 1:], dim=0).values, 6).tolist()
        x = spconv.SparseConvTensor(features, indices, shape, indices[-1, 0].item() + 1)
        return self.up(self.down(self.stem(x))).features
