"""Sparse convolutions with spconv's names, arguments, attributes and initial weights.

`weight` [Cout, *kernel, Cin] and `bias` [Cout] have the dtype of the features; sums are float32. `algo`, `fp32_accum` and
`large_kernel_fast_algo` are accepted and change nothing: there is one algorithm.
"""

import math
import os
from functools import cache
from time import perf_counter

import torch
from torch import nn
from torch.nn import functional, init

from tir_kernels.spec.geometry import Geometry

from ...eager.arrays import describe
from ...op.numbers import as_int, shown
from ..ops import CALLS
from .common import (
    MAX_NUM_VOXELS,
    axes_of,
    check_same,
    check_untouched,
    check_voxels,
    checked_axes,
    checked_input,
    count_voxels,
    note,
    record_of,
)
from .core import Activation, IndiceData, SparseConvTensor, as_sparse
from .modules import SparseModule
from .ops import ConvAlgo, get_conv_output_size, get_deconv_output_size
from .sites import Sites, widen

LAYOUT_OF_STATES = "SPCONV_SAVED_WEIGHT_LAYOUT"  # in the environment, as for spconv: how weights lie that were saved


class SparseConvolution(SparseModule):
    """A convolution of any kind in `ndim` axes, one to three; the named classes are this one with some arguments set.

    `subm`: output voxels are the input voxels; stride and padding are ignored. `transposed`: a voxel spreads to
    i * stride - padding + k * dilation. `inverse`: back to the voxels of the layer under `indice_key`, by its map. None of
    them: a voxel comes out wherever a tap meets one. Where a kernel and, unless `subm`, the stride are 1, the layer is x @ M, M
    the memory of the weight read as a row-major [Cin, Cout], as in spconv.

    `act_type`, with `act_alpha` the slope of LeakyReLU, is applied behind the bias and what is added, in evaluation only.

    Raises ValueError naming the argument for groups, a geometry that there is not, and an activation with kernel 1; when
    called, for a tensor or a map under `indice_key` that does not fit.
    """

    __constants__ = ("stride", "padding", "dilation", "groups", "bias", "subm", "inverse", "transposed", "output_padding")

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        out_channels: int,
        kernel_size=3,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        subm: bool = False,
        output_padding=0,
        transposed: bool = False,
        inverse: bool = False,
        indice_key: str | None = None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        record_voxel_count: bool = False,
        act_type=Activation.None_,
        act_alpha: float = 0,
        act_beta: float = 0,
        large_kernel_fast_algo: bool = False,
        name=None,
        device=None,
        dtype=None,
    ):
        super().__init__(name)
        if groups != 1:
            raise ValueError(f"groups: expected 1, as in spconv, given {shown(groups)}")
        for argument, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if as_int(value) is None or as_int(value) < 1:
                raise ValueError(f"{argument}: expected an int of at least 1, given {shown(value)}")
        self.ndim = ndim
        self.in_channels = as_int(in_channels)
        self.out_channels = as_int(out_channels)
        self.kernel_size = checked_axes(type(self).__name__, ndim, kernel_size, subm)
        self.stride = axes_of("stride", stride, ndim, 1)
        self.dilation = axes_of("dilation", dilation, ndim, 1)
        self.padding = axes_of("padding", padding, ndim, 0)
        self.output_padding = axes_of("output_padding", output_padding, ndim, 0)
        self.conv1x1 = math.prod(self.kernel_size) == 1 and (subm or math.prod(self.stride) == 1)
        if self.conv1x1 and not subm and any(self.padding):
            raise ValueError(f"padding: expected 0 with kernel size 1 and stride 1, given {shown(padding)}")
        self.transposed = transposed
        self.inverse = inverse
        self.groups = groups
        self.subm = subm
        self.indice_key = indice_key
        self.record_voxel_count = record_voxel_count
        self.algo = ConvAlgo.Native if algo is None else algo
        self.fp32_accum = fp32_accum
        self.weight_shape = [self.out_channels, *self.kernel_size, self.in_channels]
        self.act_type = act_type
        self.act_alpha = act_alpha
        self.act_beta = act_beta
        self.scale = 1.0
        self.zero_point = 0
        if _activation(act_type) != Activation.None_ and self.conv1x1:
            raise ValueError(f"act_type: expected none with kernel size 1 and stride 1, given {act_type}")
        if record_voxel_count and not subm and not inverse:
            self.register_buffer(MAX_NUM_VOXELS, torch.zeros(1, dtype=torch.int32, device=device))
        self.weight = nn.Parameter(torch.zeros(*self.weight_shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(self.out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()
        self._register_load_state_dict_pre_hook(self._load_weight_different_layout)

    def reset_parameters(self) -> None:
        """Uniform numbers up to 1 / sqrt(fan in), by Kaiming's rule with a = sqrt(5): the weight, then the bias."""
        fan_in = self.in_channels * math.prod(self.kernel_size)
        bound = math.sqrt(3.0) * (init.calculate_gain("leaky_relu", math.sqrt(5)) / math.sqrt(fan_in))
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
        if self.bias is not None:
            bound = 1 / math.sqrt(fan_in)
            init.uniform_(self.bias, -bound, bound)

    def _load_weight_different_layout(self, state_dict, prefix: str, *_) -> None:
        """A state without the count of voxels is taken, and weights [*kernel, Cout, Cin] or [*kernel, Cin, Cout] are."""
        if hasattr(self, MAX_NUM_VOXELS):
            state_dict.setdefault(prefix + MAX_NUM_VOXELS, torch.zeros(1, dtype=torch.int32))
        layout, key, axes = os.environ.get(LAYOUT_OF_STATES, ""), prefix + "weight", range(self.ndim)
        if layout in ("RSKC", "RSCK") and key in state_dict:
            cout, cin = (self.ndim, self.ndim + 1) if layout == "RSKC" else (self.ndim + 1, self.ndim)
            state_dict[key] = state_dict[key].permute(cout, *axes, cin).contiguous()

    def is_inverseable(self) -> bool:
        return self.indice_key is not None and not self.subm

    def get_max_num_voxels(self) -> torch.Tensor | None:
        """The largest number of output voxels so far, int32 [1]; None of a layer that does not count."""
        return getattr(self, MAX_NUM_VOXELS, None)

    def extra_repr(self) -> str:
        words = [str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}", f"stride={self.stride}"]
        words += [f"{name}={getattr(self, name)}" for name in ("padding", "dilation", "output_padding")]
        words += ["bias=False"] if self.bias is None else []
        words += [f"algo={self.algo}"]
        words += [f"act={self.act_type}"] if _activation(self.act_type) != Activation.None_ else []
        return ", ".join(words)

    def forward(self, input: SparseConvTensor, add_input: SparseConvTensor | None = None) -> SparseConvTensor:
        """`add_input`: a tensor whose features, on the same voxels as the result, are added before the activation."""
        return self._conv_forward(
            self.training,
            input,
            self.weight,
            self.bias,
            add_input,
            name=self.name,
            sparse_unique_name=self._sparse_unique_name,
            act_type=self.act_type,
            act_alpha=self.act_alpha,
            act_beta=self.act_beta,
        )

    def _conv_forward(
        self,
        training: bool,
        input,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        add_input=None,
        channel_scale=None,
        output_scale=None,
        name: str | None = None,
        sparse_unique_name: str = "",
        act_type=Activation.None_,
        act_alpha: float = 0,
        act_beta: float = 0,
    ) -> SparseConvTensor:
        """The layer with other parameters than its own, as spconv's layers may be called."""
        if channel_scale is not None or output_scale is not None:
            raise ValueError("channel_scale, output_scale: expected None, as there is no int8, given numbers")
        if training and _activation(act_type) != Activation.None_:
            raise ValueError(f"act_type: expected none in training, given {act_type}")
        x = checked_input(self, input)
        if x.features.shape[1] != self.in_channels:
            raise ValueError(f"features: expected {self.in_channels} channels, as in_channels, given {x.features.shape[1]}")
        record = record_of(
            *(self, x, name, "SparseConvolution"),
            output_padding=self.output_padding,
            subm=self.subm,
            transposed=self.transposed,
            input_channels=self.in_channels,
            out_channels=self.out_channels,
        )
        if self.conv1x1:
            features = torch.mm(x.features, self._same_dtype(weight, x.features).reshape(self.in_channels, self.out_channels))
            features = features if bias is None else features + bias.to(features.dtype)
            out = x.moved(features, spatial_shape=self._grid_behind(x))
        else:
            begun = perf_counter()
            arrays, sites, shape, indice_dict = self._map(x)
            mapped = perf_counter()
            features = self._convolved(x.features, weight, arrays, sites, bias)
            note(record, (begun, mapped, perf_counter()), x.features.shape[0], features.shape[0])
            if not self.subm and not self.inverse:
                count_voxels(self, features.shape[0])
            out = x.moved(features, indices=sites.indices, spatial_shape=shape, indice_dict=indice_dict, _sites=sites)
        if add_input is not None:
            out = out + as_sparse(add_input)
        activated = _activated(out.features, act_type, act_alpha)
        return out if activated is out.features else out.replace_feature(activated)

    def _convolved(self, features, weight, arrays, sites: Sites, bias) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            features = features.to(torch.get_autocast_dtype("cpu"))
        weight = self._same_dtype(weight, features)
        if self.ndim < 3:
            weight = weight.reshape(self.out_channels, *widen(self.kernel_size, 1), self.in_channels)
        bias = None if bias is None else bias.float()
        return CALLS["sparse_conv"](features, weight, *arrays, sites.coords, bias)

    @staticmethod
    def _same_dtype(weight: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """The weight, of the dtype of the features under autocast. ValueError for another dtype elsewhere."""
        if torch.is_autocast_enabled("cpu"):
            return weight.to(features.dtype)
        if weight.dtype != features.dtype:
            raise ValueError(
                f"features: expected {str(weight.dtype).removeprefix('torch.')}, as weight, given {describe(features)}"
            )
        return weight

    def _map(self, x: SparseConvTensor) -> tuple[tuple, Sites, list, dict]:
        """The map, the voxels that come out, the extents of their grid, and the `indice_dict` that the result carries."""
        key, found = self.indice_key, x.find_indice_pair(self.indice_key)
        if self.inverse:
            self._check_inverse(x, found)
            return found._built.inverse(found._source), found._source, found.spatial_shape, dict(x.indice_dict)
        if found is not None:
            self._check_reuse(x, found)
            return found._built.arrays, found._target, x.spatial_shape, dict(x.indice_dict)
        geometry = geometry_of(self)
        if self.subm:
            built, target, shape = x.sites.submanifold(geometry), x.sites, x.spatial_shape
        else:
            built, target, shape = x.sites.strided(geometry, x.spatial_shape)
        indice_dict = dict(x.indice_dict)
        if key is not None:
            indice_dict[key] = IndiceData.of(self, built, (x.sites, target), x.spatial_shape, shape)
        return built.arrays, target, shape, indice_dict

    def _check_reuse(self, x: SparseConvTensor, found) -> None:
        key = self.indice_key
        check_untouched(key, found, "make the changed tensor anew, without the indice_dict")
        if not self.subm or not found.is_subm:
            kind, theirs = ("submanifold" if subm else "strided" for subm in (self.subm, found.is_subm))
            raise ValueError(
                f"indice_key: {key!r}: expected a key that no layer has, as only submanifold layers share one, given that of a "
                f"{theirs} layer for a {kind} one"
            )
        check_same(key, "kernel_size", self.kernel_size, found.ksize)
        check_same(key, "dilation", self.dilation, found.dilation)
        check_same(key, "spatial_shape", x.spatial_shape, found.spatial_shape)
        check_voxels(key, x, found._source)

    def _check_inverse(self, x: SparseConvTensor, found) -> None:
        key = self.indice_key
        if found is None:
            known = sorted(str(k) for k, data in x.indice_dict.items() if not getattr(data, "is_subm", True))
            raise ValueError(f"indice_key: expected the key of a strided layer or pool, one of {known}, given {key!r}")
        check_untouched(key, found, "an inverse convolution goes back to them")
        if found.is_subm:
            raise ValueError(f"indice_key: {key!r}: expected the key of a strided layer or pool, given a submanifold layer's")
        check_same(key, "kernel_size", self.kernel_size, found.ksize)
        check_same(key, "spatial_shape", x.spatial_shape, found.out_spatial_shape)
        check_voxels(key, x, found._target)

    def _grid_behind(self, x: SparseConvTensor) -> list:
        if self.subm:
            return x.spatial_shape
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation)
        if self.transposed:
            return get_deconv_output_size(x.spatial_shape, *geometry, self.output_padding)
        return get_conv_output_size(x.spatial_shape, *geometry)


def geometry_of(layer) -> Geometry:
    """A layer's geometry in three axes."""
    kernel, dilation = tuple(layer.kernel_size), tuple(layer.dilation)
    if layer.subm:
        return _submanifold(kernel, dilation)
    transposed = getattr(layer, "transposed", False)
    output_padding = tuple(layer.output_padding) if transposed else (0,) * layer.ndim
    return _strided(kernel, tuple(layer.stride), tuple(layer.padding), dilation, transposed, output_padding)


@cache
def _submanifold(kernel, dilation) -> Geometry:
    return Geometry.submanifold(tuple(widen(kernel, 1)), tuple(widen(dilation, 1)))


@cache
def _strided(kernel, stride, padding, dilation, transposed: bool, output_padding) -> Geometry:
    ones = [tuple(widen(axes, 1)) for axes in (kernel, stride)]
    return Geometry(*ones, tuple(widen(padding, 0)), tuple(widen(dilation, 1)), transposed, tuple(widen(output_padding, 0)))


def _activation(act_type) -> Activation:
    """An activation of ours or of cumm's, by its name."""
    if type(act_type) is Activation:
        return act_type
    name = getattr(act_type, "name", None)
    if name not in Activation.__members__:
        raise ValueError(f"act_type: expected one of {list(Activation.__members__)}, given {shown(act_type)}")
    return Activation[name]


def _activated(features: torch.Tensor, act_type, act_alpha: float) -> torch.Tensor:
    match _activation(act_type):
        case Activation.ReLU:
            return functional.relu(features)
        case Activation.Sigmoid:
            return torch.sigmoid(features)
        case Activation.LeakyReLU:
            return functional.leaky_relu(features, act_alpha)
    return features


class _SparseConv(SparseConvolution):
    _axes: int
    _transposed = False

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        indice_key=None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        record_voxel_count: bool = False,
        large_kernel_fast_algo: bool = False,
        name=None,
    ):
        super().__init__(
            *(self._axes, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
            transposed=self._transposed,
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            record_voxel_count=record_voxel_count,
            large_kernel_fast_algo=large_kernel_fast_algo,
            name=name,
        )


class _SparseConvTranspose(_SparseConv):
    _transposed = True


class _SparseInverseConv(SparseConvolution):
    _axes: int

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        indice_key,
        bias=True,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        large_kernel_fast_algo: bool = False,
        name=None,
    ):
        super().__init__(
            *(self._axes, in_channels, out_channels, kernel_size),
            bias=bias,
            inverse=True,
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            large_kernel_fast_algo=large_kernel_fast_algo,
            name=name,
        )


class _SubMConv(SparseConvolution):
    _axes: int

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        indice_key=None,
        algo: ConvAlgo | None = None,
        fp32_accum: bool | None = None,
        large_kernel_fast_algo: bool = False,
        name=None,
    ):
        super().__init__(
            *(self._axes, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, True),
            indice_key=indice_key,
            algo=algo,
            fp32_accum=fp32_accum,
            large_kernel_fast_algo=large_kernel_fast_algo,
            name=name,
        )


def in_axes(base: type, name: str, what: str, counts) -> list[type]:
    """A class for each number of axes, as `SubMConv1d` to `SubMConv4d` of `SubMConv`; that of four refuses."""
    classes = []
    for axes in counts:
        words = f"{what} in {axes} ax{'i' if axes == 1 else 'e'}s" + (", which is refused." if axes > 3 else ".")
        classes.append(type(f"{name}{axes}d", (base,), {"_axes": axes, "__module__": base.__module__, "__doc__": words}))
    return classes


_ALL = range(1, 5)
SparseConv1d, SparseConv2d, SparseConv3d, SparseConv4d = in_axes(_SparseConv, "SparseConv", "A strided convolution", _ALL)
SparseConvTranspose1d, SparseConvTranspose2d, SparseConvTranspose3d, SparseConvTranspose4d = in_axes(
    _SparseConvTranspose, "SparseConvTranspose", "A transposed convolution", _ALL
)
SparseInverseConv1d, SparseInverseConv2d, SparseInverseConv3d, SparseInverseConv4d = in_axes(
    _SparseInverseConv, "SparseInverseConv", "The inverse of the layer under `indice_key`", _ALL
)
SubMConv1d, SubMConv2d, SubMConv3d, SubMConv4d = in_axes(_SubMConv, "SubMConv", "A submanifold convolution", _ALL)

DEFAULT_SPARSE_CONV_TYPES = {
    *(SubMConv1d, SubMConv2d, SubMConv3d, SubMConv4d),
    *(SparseConv1d, SparseConv2d, SparseConv3d, SparseConv4d),
    *(SparseInverseConv1d, SparseInverseConv2d, SparseInverseConv3d, SparseInverseConv4d),
    *(SparseConvTranspose1d, SparseConvTranspose2d, SparseConvTranspose3d, SparseConvTranspose4d),
}
