"""Pooling with spconv's names and arguments: of windows, and of all voxels of a batch element.

Maxima start from 0, as spconv's do: where all voxels of a window are negative, 0 comes out. Means divide by the number of
voxels that a window meets. `algo` is accepted and changes nothing.
"""

from time import perf_counter

import torch

from ...eager.arrays import describe
from ..ops import CALLS
from .common import (
    MAX_NUM_VOXELS,
    axes_of,
    check_untouched,
    checked_axes,
    checked_input,
    count_voxels,
    note,
    record_of,
)
from .conv import geometry_of, in_axes
from .core import IndiceData, SparseConvTensor, as_sparse
from .modules import SparseModule
from .ops import ConvAlgo


class _Pool(SparseModule):
    """What both pools share. `subm`: output voxels are the input voxels; stride and padding are ignored."""

    _mode: str
    _kind: str

    def __init__(
        self,
        ndim,
        kernel_size=3,
        stride=1,
        padding=0,
        dilation=1,
        indice_key: str | None = None,
        subm: bool = False,
        algo: ConvAlgo | None = None,
        record_voxel_count: bool = False,
        name=None,
    ):
        super().__init__(name)
        self.ndim = ndim
        self.kernel_size = checked_axes(type(self).__name__, ndim, kernel_size, subm)
        self.stride = list(self.kernel_size) if stride is None else axes_of("stride", stride, ndim, 1)
        self.padding = axes_of("padding", padding, ndim, 0)
        self.subm = subm
        if record_voxel_count and not subm:
            self.register_buffer(MAX_NUM_VOXELS, torch.zeros(1, dtype=torch.int32))
        self.record_voxel_count = record_voxel_count
        self.dilation = axes_of("dilation", dilation, ndim, 1)
        self.indice_key = indice_key
        self.algo = ConvAlgo.Native if algo is None else algo

    def get_max_num_voxels(self) -> torch.Tensor | None:
        """The largest number of output voxels so far, int32 [1]; None of a layer that does not count."""
        return getattr(self, MAX_NUM_VOXELS, None)

    def extra_repr(self) -> str:
        names = ("kernel_size", "stride", "padding", "dilation", "algo")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def forward(self, input: SparseConvTensor) -> SparseConvTensor:
        x = checked_input(self, input)
        record = record_of(self, x, self.name, self._kind, channels=x.features.shape[1])
        found = x.find_indice_pair(self.indice_key)
        if found is not None:
            check_untouched(self.indice_key, found, "give the pool a key of its own")
            raise ValueError(f"indice_key: expected a key that no layer has, given {self.indice_key!r}")
        begun = perf_counter()
        if self.subm:
            built, target, shape = x.sites.submanifold(geometry_of(self)), x.sites, x.spatial_shape
        else:
            built, target, shape = x.sites.strided(geometry_of(self), x.spatial_shape)
        indice_dict = dict(x.indice_dict)
        if self.indice_key is not None:
            indice_dict[self.indice_key] = IndiceData.of(self, built, (x.sites, target), x.spatial_shape, shape)
        mapped = perf_counter()
        features = CALLS["pool"](x.features, *built.arrays, target.coords, self._mode, 0, self._mode == "max")
        note(record, (begun, mapped, perf_counter()), x.features.shape[0], features.shape[0])
        if not self.subm:
            count_voxels(self, features.shape[0])
        return x.moved(features, indices=target.indices, spatial_shape=shape, indice_dict=indice_dict, _sites=target)


class SparseMaxPool(_Pool):
    """The maximum of 0 and the voxels of each window, in one to three axes."""

    _mode, _kind = "max", "SparseMaxPool"


class SparseAvgPool(_Pool):
    """The mean over the voxels that each window meets, in one to three axes."""

    _mode, _kind = "mean", "SparseAvgPool"


class SparseGlobalMaxOrAvgPool(SparseModule):
    """One row for each batch element, over its voxels: [B, C]. An element without voxels has 0."""

    def __init__(self, is_mean: bool, name=None):
        super().__init__(name)
        self.is_mean = is_mean

    def forward(self, input: SparseConvTensor) -> torch.Tensor:
        x = as_sparse(input)
        if x.is_quantized:
            raise ValueError(f"features: expected float32, bfloat16 or float16, given {describe(x.features)}")
        like = x.indices.new_empty((x.batch_size,))
        return CALLS["segment_pool"](x.features, x.indices[:, 0], like, "mean" if self.is_mean else "max")


class SparseGlobalAvgPool(SparseGlobalMaxOrAvgPool):
    """The mean over the voxels of each batch element, [B, C]; 0 for an element without voxels."""

    def __init__(self, name=None):
        super().__init__(True, name)


class SparseGlobalMaxPool(SparseGlobalMaxOrAvgPool):
    """The maximum over the voxels of each batch element, [B, C]; 0 for an element without voxels."""

    def __init__(self, name=None):
        super().__init__(False, name)


class _InAxes:
    """The pools by their names: a stride that is not given is the kernel size, and there is no `subm`."""

    _axes: int

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        indice_key=None,
        algo: ConvAlgo | None = None,
        record_voxel_count: bool = False,
        name=None,
    ):
        super().__init__(
            *(self._axes, kernel_size, stride, padding, dilation),
            indice_key=indice_key,
            algo=algo,
            record_voxel_count=record_voxel_count,
            name=name,
        )


class _MaxPool(_InAxes, SparseMaxPool):
    pass


class _AvgPool(_InAxes, SparseAvgPool):
    pass


SparseMaxPool1d, SparseMaxPool2d, SparseMaxPool3d, SparseMaxPool4d = in_axes(
    _MaxPool, "SparseMaxPool", "The maximum of 0 and the voxels of each window", range(1, 5)
)
SparseAvgPool1d, SparseAvgPool2d, SparseAvgPool3d = in_axes(
    _AvgPool, "SparseAvgPool", "The mean over the voxels that each window meets", range(1, 4)
)

ALL_POOL_LAYERS = {
    *(SparseMaxPool, SparseMaxPool1d, SparseMaxPool2d, SparseMaxPool3d, SparseMaxPool4d),
    *(SparseAvgPool, SparseAvgPool1d, SparseAvgPool2d, SparseAvgPool3d),
}
