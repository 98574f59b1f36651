"""Drop-in for `spconv.pytorch`: `import sparse_ops.torch.spconv as spconv`.

The same names, arguments, attributes, initial weights, states and results, computed by our kernels: on a CPU, with any
number of threads, and through torch.export. `differences` lists what is left out and what is meant to differ.
"""

from . import conv, core, differences, functional, identity, modules, ops, pool, tables, utils
from .conv import (
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseConv4d,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    SparseConvTranspose3d,
    SparseConvTranspose4d,
    SparseInverseConv1d,
    SparseInverseConv2d,
    SparseInverseConv3d,
    SparseInverseConv4d,
    SubMConv1d,
    SubMConv2d,
    SubMConv3d,
    SubMConv4d,
)
from .core import Activation, SparseConvTensor
from .identity import Identity
from .modules import (
    SparseBatchNorm,
    SparseIdentity,
    SparseModule,
    SparseReLU,
    SparseSequential,
    assign_name_for_sparse_modules,
)
from .ops import ConvAlgo
from .pool import (
    SparseAvgPool1d,
    SparseAvgPool2d,
    SparseAvgPool3d,
    SparseGlobalAvgPool,
    SparseGlobalMaxPool,
    SparseMaxPool1d,
    SparseMaxPool2d,
    SparseMaxPool3d,
    SparseMaxPool4d,
)
from .tables import AddTable, AddTableMisaligned, ConcatTable, JoinTable


class ToDense(SparseModule):
    """A tensor -> [B, C, *spatial_shape]: `SparseConvTensor.dense`."""

    def forward(self, x: SparseConvTensor):
        return core.as_sparse(x).dense()


class RemoveGrid(SparseModule):
    """The tensor, whose `grid` is None from now on."""

    def forward(self, x: SparseConvTensor):
        x.grid = None
        return x


__all__ = [
    "Activation",
    "AddTable",
    "AddTableMisaligned",
    "ConcatTable",
    "ConvAlgo",
    "Identity",
    "JoinTable",
    "RemoveGrid",
    "SparseAvgPool1d",
    "SparseAvgPool2d",
    "SparseAvgPool3d",
    "SparseBatchNorm",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseConv4d",
    "SparseConvTensor",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseConvTranspose3d",
    "SparseConvTranspose4d",
    "SparseGlobalAvgPool",
    "SparseGlobalMaxPool",
    "SparseIdentity",
    "SparseInverseConv1d",
    "SparseInverseConv2d",
    "SparseInverseConv3d",
    "SparseInverseConv4d",
    "SparseMaxPool1d",
    "SparseMaxPool2d",
    "SparseMaxPool3d",
    "SparseMaxPool4d",
    "SparseModule",
    "SparseReLU",
    "SparseSequential",
    "SubMConv1d",
    "SubMConv2d",
    "SubMConv3d",
    "SubMConv4d",
    "ToDense",
    "assign_name_for_sparse_modules",
    "conv",
    "core",
    "differences",
    "functional",
    "identity",
    "modules",
    "ops",
    "pool",
    "tables",
    "utils",
]
