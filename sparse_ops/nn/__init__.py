"""Modules in the style of `tvm.relax.frontend.nn`: `export_tvm` turns a network of them into a Relax module.

Rows are symbolic: one exported function serves every number of voxels, and where downsampling or a strided convolution
decides the number of rows, it becomes a fresh symbolic dimension. Parameters have the names and layouts of checkpoints.

    class Block(Module):                                  # tvm.relax.frontend.nn.Module
        def __init__(self):
            self.conv = SubMConv3d(8, 32, 3)
            self.norm = LayerNorm(32)

        def forward(self, feats, coords):                 # tensors [N, 8] and int32 [N, 4]
            x = SymbolicSparseTensor.of(feats, coords)
            return self.norm(self.conv(x), activation="silu").feats

Modules that need only rows take a plain tensor [N, C] or a `SymbolicSparseTensor`, and return what they were given.
Arguments that do not fit raise ValueError naming the argument, what was given and what was expected; data that does not fit
raises it from the running module.
"""

from tvm.relax.frontend.nn import Module, ModuleList, Parameter, Tensor

from .attention import CrossAttention, SelfAttention, SerializedSelfAttention, WindowedSelfAttention, attention
from .carrier import Link, Partition, Sites, SymbolicKernelMap, SymbolicSparseTensor
from .containers import SparseSequential
from .conv import SparseConv3d, SparseConvTranspose3d, SparseInverseConv3d, SubMConv3d
from .norm import BatchNorm, GroupNorm, LayerNorm, MultiHeadRMSNorm
from .points import devoxelize, voxelize
from .pool import (
    BatchPool,
    Downsample,
    SparseAvgPool3d,
    SparseGlobalAvgPool,
    SparseGlobalMaxPool,
    SparseGlobalSumPool,
    SparseMaxPool3d,
    Subdivide,
    ToDense,
    Upsample,
)
from .rows import Activation, Linear, concat, modulated_add
from .voxels import intersection, prune, sparse_add, sparse_cat

__all__ = [
    "Activation",
    "BatchNorm",
    "BatchPool",
    "CrossAttention",
    "Downsample",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "Link",
    "Module",
    "ModuleList",
    "MultiHeadRMSNorm",
    "Parameter",
    "Partition",
    "SelfAttention",
    "SerializedSelfAttention",
    "Sites",
    "SparseAvgPool3d",
    "SparseConv3d",
    "SparseConvTranspose3d",
    "SparseGlobalAvgPool",
    "SparseGlobalMaxPool",
    "SparseGlobalSumPool",
    "SparseInverseConv3d",
    "SparseMaxPool3d",
    "SparseSequential",
    "SubMConv3d",
    "Subdivide",
    "SymbolicKernelMap",
    "SymbolicSparseTensor",
    "Tensor",
    "ToDense",
    "Upsample",
    "WindowedSelfAttention",
    "attention",
    "concat",
    "devoxelize",
    "intersection",
    "modulated_add",
    "prune",
    "sparse_add",
    "sparse_cat",
    "voxelize",
]
