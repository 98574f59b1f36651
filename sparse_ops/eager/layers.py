"""Eager face, layers: spconv's names and argument order on `SparseTensor`, in one to three dimensions.

`weight` [Cout, *kernel, Cin / groups] and `bias` [Cout] are arrays of any kind; new layers hold random numpy arrays. Layers of
kernel 1 and stride 1 follow spconv, see `_Convolution.pointwise_weight`.

Arguments have spconv's order. `algo`, `fp32_accum`, `record_voxel_count`, `large_kernel_fast_algo` and `name` are accepted and
ignored: there is one algorithm, which sums in float32. Arguments that spconv lacks go by name only.

A tensor whose coordinates are negative and that has no spatial_shape lies on a lattice without bounds: then strided and
transposed layers drop no voxel for lying outside of a grid.
"""

from dataclasses import replace
from functools import cache, wraps
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from tir_kernels.spec.geometry import Geometry

from ..devices import place
from ..op.index import check_ceil_mode, check_taps, fitting_extent, output_padding_of
from ..op.numbers import MOST_STEP, as_axes, as_int, check_flag, check_groups, check_int, check_most, shown
from ..op.signature import FLOATS
from . import functional
from .arrays import Checked, as_kind, as_tensor, describe, dtype_of, reshape
from .call import KernelMap, Weights
from .checksum import checksum
from .module import Entry, SparseModule
from .tensor import CoordinateSet, Layer, SparseTensor


def _axes(argument: str, value, dimensions: int, least: int) -> tuple[int, ...]:
    """An int or one for each axis, from `least` to `MOST_STEP`."""
    axes = as_axes(value, dimensions)
    if axes is None or min(axes) < least:
        raise ValueError(f"{argument}: expected an int or {dimensions} of at least {least}, given {shown(value)}")
    check_most(argument, value, axes, MOST_STEP)
    return axes


def _widen(axes: tuple[int, ...], fill: int) -> tuple[int, int, int]:
    """Values along the axes as three, on leading unit axes."""
    return (fill,) * (3 - len(axes)) + axes


@cache
def _submanifold(kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> Geometry:
    return Geometry.submanifold(_widen(kernel_size, 1), _widen(dilation, 1))


def _check_input(layer, x) -> None:
    if not isinstance(x, SparseTensor):
        raise ValueError(f"input: expected a SparseTensor, given {type(x).__name__}")
    if x.coordinates.dimensions != layer.ndim:
        raise ValueError(f"input: expected coordinates of {layer.ndim} axes, given {x.coordinates.dimensions}")


def _where_it_lies(build):
    """What is built for a tensor, its first argument, is built for the device that it lies on."""

    @wraps(build)
    def built(x: SparseTensor, *args):
        with x.where_it_lies():
            return build(x, *args)

    return built


@_where_it_lies
def _recorded(x: SparseTensor, key: str | None, kind: str, geometry: Geometry) -> Layer | None:
    """The layer under `key`, if it is there and fits; ValueError if another one has the key.

    None for one whose map was built for another kind of device: one that is built here takes its place.
    """
    layer = x.indice_dict.get(key) if key is not None else None
    if layer is None:
        return None
    if layer.kind != kind or layer.kernel_map.geometry != geometry:
        raise ValueError(
            f"indice_key: {key!r} belongs to a {layer.kind} map of {layer.kernel_map.geometry}, expected {kind} of {geometry}"
        )
    if not layer.source.same_voxels(x.coordinates):
        raise ValueError(f"indice_key: the map of {key!r} was built for another coordinate set")
    return layer if layer.kernel_map.made_for == place()[0] else None


@_where_it_lies
def _strided(x: SparseTensor, geometry: Geometry, key: str | None) -> Layer:
    """Output sites and map of a strided or transposed geometry, from the key, the coordinates' cache, or built."""
    layer = _recorded(x, key, "strided", geometry) or x.coordinates.maps.get((geometry, place()))
    if layer is None:
        extent, shape = x.coordinates.lattice(), None
        if extent is not None:
            shape = _widen(extent, 1)
            if min(shape) > 0:
                extent = fitting_extent("", shape, geometry, x.coordinates.dimensions)
            else:  # no voxels and no shape given
                extent, shape = (0,) * x.coordinates.dimensions, "infer"
        kernel_map = functional.strided_map(
            x.coordinates.coords,
            geometry.kernel,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            shape,
            geometry.transposed,
            output_padding=geometry.output_padding,
            ceil_mode=geometry.ceil_mode,
            index=x.coordinates.index,
        )
        x.coordinates.distinct = True
        target = CoordinateSet(
            kernel_map.coords_out,
            x.coordinates.dimensions,
            extent,
            x.batch_size,
            unbounded=extent is None,
            distinct=True,
        )
        layer = x.coordinates.maps[geometry, place()] = Layer(kernel_map, x.coordinates, target, "strided")
    if key is not None:
        x.indice_dict[key] = layer
    return layer


@_where_it_lies
def _chosen(x: SparseTensor, geometry: Geometry, key: str | None, coordinates) -> Layer:
    """The map of a geometry onto output voxels that the caller chose, from the key, from an earlier call, or built."""
    target = _chosen_set(x, coordinates)
    geometry = replace(geometry, output_padding=(0, 0, 0), ceil_mode=False)  # no grid bounds what was chosen
    layer = _recorded(x, key, "chosen-output", geometry)
    if layer is not None:
        if not layer.target.same_voxels(target):
            raise ValueError(f"indice_key: the map of {key!r} was built for other output coordinates")
        return layer
    # Kept as long as both sets are there: a map holds the coordinates of its target, not the set.
    maps = x.coordinates.maps.setdefault("chosen", WeakKeyDictionary()).setdefault(target, {})
    there = geometry, place()
    if there not in maps:
        odd = all(k % 2 for k in geometry.kernel)
        if target is x.coordinates and odd and geometry == Geometry.submanifold(geometry.kernel, geometry.dilation):
            maps[there] = x.kernel_map(geometry.kernel, geometry.dilation)
        else:
            maps[there] = functional.kernel_map(
                Checked(x.coordinates.coords, "int32"),
                Checked(target.coords, "int32"),
                *(geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, geometry.transposed),
                index=x.coordinates.index,
            )
            x.coordinates.distinct = target.distinct = True
    layer = Layer(maps[there], x.coordinates, target, "chosen-output")
    if key is not None:
        x.indice_dict[key] = layer
    return layer


@_where_it_lies
def _inverse(x: SparseTensor, layer: Layer) -> KernelMap:
    """The map from the voxels of a layer, which are those of `x`, back to those that it read."""
    key = "inverse", place()
    of, inverse = layer.target.maps.get(key, (None, None))
    if of is not layer.kernel_map:  # kept for one map: other threads may put theirs in its place at any time
        kernel_map, geometry = layer.kernel_map, layer.kernel_map.geometry
        if kernel_map.made_for != place()[0]:
            kernel_map = functional.kernel_map(
                Checked(kernel_map.coords_in, "int32"),
                Checked(kernel_map.coords_out, "int32"),
                *(geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, geometry.transposed),
            )
        inverse = functional.inverse_map(kernel_map)
        layer.target.maps[key] = layer.kernel_map, inverse
    return inverse


def _chosen_set(x: SparseTensor, coordinates) -> CoordinateSet:
    """What a layer takes as `coordinates`, as a set: that of a tensor, or a new one of an array int32 [M, 1 + d]."""
    if isinstance(coordinates, SparseTensor):
        coordinates = coordinates.coordinates
    if not isinstance(coordinates, CoordinateSet):
        shape = getattr(coordinates, "shape", ())
        if len(shape) != 2:
            raise ValueError(
                "coordinates: expected a SparseTensor, its `coordinates`, or an int32 array [M, 1 + axes], "
                f"given {describe(coordinates)}"
            )
        try:
            made = SparseTensor(np.zeros((shape[0], 1), "float32"), coordinates).coordinates
        except ValueError as error:
            raise ValueError(str(error).replace("coords", "coordinates", 1)) from None
        coordinates = replace(made, batch_size=max(made.batch_size, x.batch_size))
    if coordinates.dimensions != x.coordinates.dimensions:
        raise ValueError(f"coordinates: expected {x.coordinates.dimensions} axes, given {coordinates.dimensions}")
    return coordinates


class _Convolution(SparseModule):
    """What the convolutions share: parameters, and the call through a kernel map."""

    ndim = 3
    activation, _is_made = "none", False  # behind the sums, of a layer that `with_affine` made; whether this is one
    _rebuilt: ClassVar[dict] = {"_kept": type(None)}  # packed parameters

    def __init__(self, in_channels: int, out_channels: int, kernel_size, groups: int, bias: bool):
        super().__init__()
        for argument, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if as_int(value) is None or as_int(value) < 1:
                raise ValueError(f"{argument}: expected a positive int, given {shown(value)}")
        in_channels, out_channels = as_int(in_channels), as_int(out_channels)
        self.groups = check_groups("groups", groups, in_channels, out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _axes("kernel_size", kernel_size, self.ndim, 1)
        check_taps(type(self).__name__, self.kernel_size)
        fan_in = in_channels // groups * int(np.prod(self.kernel_size))
        random = np.random.default_rng()
        limit = 1 / np.sqrt(fan_in)
        self.weight = random.uniform(-limit, limit, self.weight_shape).astype("float32")
        self.bias = random.uniform(-limit, limit, out_channels).astype("float32") if bias else None

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, *self.kernel_size, self.in_channels // self.groups)

    def entries(self) -> dict[str, Entry]:
        bias = {} if self.bias is None else {"bias": Entry((self.out_channels,), ("float32",))}
        return {"weight": Entry(self.weight_shape, FLOATS)} | bias

    @property
    def _is_pointwise(self) -> bool:
        return max(self.kernel_size) == 1

    def with_affine(self, scale: np.ndarray, shift: np.ndarray, activation: str = "none") -> "_Convolution":
        """This layer with `activation(y * scale + shift)` behind it, as one layer with arrays of its own.

        scale, shift float64 [Cout]. The weight is rounded once more to its dtype.
        """
        weight = as_kind(as_tensor(self.weight, "weight", FLOATS, self.weight_shape), "numpy")
        is_matrix = self._is_pointwise and self.groups == 1  # see `pointwise_weight`
        by_output = (-1, self.out_channels) if is_matrix else (self.out_channels, -1)
        factors = scale if is_matrix else scale[:, None]
        layer = object.__new__(type(self))
        vars(layer).update({name: value for name, value in vars(self).items() if name not in self._rebuilt})
        layer.weight = (weight.reshape(by_output) * factors).astype(weight.dtype).reshape(self.weight_shape)
        if self.bias is not None:
            bias = as_kind(as_tensor(self.bias, "bias", ("float32",), (self.out_channels,)), "numpy")
            shift = bias * scale + shift
        layer.bias, layer.activation, layer._is_made = shift.astype("float32"), activation, True
        return layer

    def _weights(self, make) -> Weights:
        """The parameters as they are now; `make(weight)` brings the weight to kernel layout, by a view or by a copy."""
        if tuple(getattr(self.weight, "shape", ())) != self.weight_shape:
            raise ValueError(f"weight: expected shape {list(self.weight_shape)}, given {describe(self.weight)}")
        of, kept = getattr(self, "_kept", None) or (None, None)
        if make == self.pointwise_weight:
            holds = checksum(as_tensor(self.weight, "weight", FLOATS, self.weight_shape), dtype_of(self.weight))
            if of != holds:
                of, kept = holds, Weights(make(self.weight), fixed=True)
        else:
            kept = kept or Weights(None, fixed=self._is_made)
            kept.weight = make(self.weight)
        kept.bias = self.bias
        self._kept = of, kept
        return kept

    def _wide_weight(self, weight):
        """[Cout, *kernel, Cin / groups] with leading unit axes."""
        return reshape(weight, (self.out_channels, *_widen(self.kernel_size, 1), self.in_channels // self.groups))

    def pointwise_weight(self, weight):
        """The matrix [Cout, Cin] of a layer of kernel 1.

        spconv 2.3 reads the stored buffer [Cout, 1, 1, 1, Cin] of such layers as a row-major [Cin, Cout] matrix M and
        computes x @ M: a reinterpretation of memory, not a transpose. Checkpoints trained with it rely on that. It has no
        groups: with them, a layer of kernel 1 is the grouped convolution that it is for any other kernel.
        """
        matrix = as_tensor(reshape(weight, (self.in_channels, self.out_channels)), "weight", FLOATS, (None, None))
        return np.ascontiguousarray(as_kind(matrix, "numpy").T)

    def _pointwise(self, x: SparseTensor) -> SparseTensor:
        x.coordinates.check_distinct()
        if self.groups > 1:
            return self._convolve(x, x.kernel_map((1, 1, 1), (1, 1, 1)), x.coordinates)
        weights = self._weights(self.pointwise_weight)
        return x.with_result(functional.linear(x.feats, weights, activation=self.activation), x.coordinates)

    def _convolve(self, x: SparseTensor, kernel_map, coordinates: CoordinateSet) -> SparseTensor:
        weights = self._weights(self._wide_weight)
        feats = functional.sparse_conv(x.feats, weights, kernel_map, activation=self.activation, groups=self.groups)
        return x.with_result(feats, coordinates)

    def __call__(self, x: SparseTensor, coordinates=None) -> SparseTensor:
        """`coordinates`: output voxels that the caller chose, in their order, in place of those that the layer would find.

        A SparseTensor, the `coordinates` of one, or an int32 array [M, 1 + axes], no row twice. A voxel that no tap leads to
        an input from gets the bias. The map is kept while `x` and a tensor given here have their coordinates.
        """
        _check_input(self, x)
        if x.feats.shape[1] != self.in_channels:
            raise ValueError(f"input: expected {self.in_channels} channels, given {x.feats.shape[1]}")
        return self.forward(x) if coordinates is None else self._onto(x, coordinates)

    def _onto(self, x: SparseTensor, coordinates) -> SparseTensor:
        geometry = self._geometry()
        layer = _chosen(x, geometry, self.indice_key, coordinates)
        if geometry.taps > 1 or max(geometry.stride) > 1 or self.groups > 1:
            return self._convolve(x, layer.kernel_map, layer.target)
        rows = functional.pool(x.feats, layer.kernel_map, "sum")  # of one row, or of none
        weights = self._weights(self.pointwise_weight)
        return x.with_result(functional.linear(rows, weights, activation=self.activation), layer.target)

    def _geometry(self) -> Geometry:
        raise ValueError(f"coordinates: expected None for {type(self).__name__}, which goes back to voxels that it knows")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size})"


class SubMConv3d(_Convolution):
    """Submanifold convolution: output voxels are the input voxels (Graham and van der Maaten, arXiv:1706.01307).

    As in spconv, `stride` and `padding` are ignored: the stride is 1 and the padding (kernel_size // 2) * dilation. A map
    under `indice_key` is reused with the same kernel, dilation and voxels, and refused otherwise.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        algo=None,
        fp32_accum: bool | None = None,
        large_kernel_fast_algo: bool = False,
        name=None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, groups, bias)
        if any(k % 2 == 0 for k in self.kernel_size):
            raise ValueError(f"kernel_size: expected odd sizes for a submanifold convolution, given {kernel_size!r}")
        self.dilation = _axes("dilation", dilation, self.ndim, 1)
        self.indice_key = indice_key

    def _geometry(self) -> Geometry:
        return _submanifold(self.kernel_size, self.dilation)

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self._is_pointwise:
            return self._pointwise(x)
        geometry = self._geometry()
        layer = _recorded(x, self.indice_key, "submanifold", geometry)
        kernel_map = layer.kernel_map if layer else x.kernel_map(geometry.kernel, geometry.dilation)
        if self.indice_key is not None and layer is None:
            x.indice_dict[self.indice_key] = Layer(kernel_map, x.coordinates, x.coordinates, "submanifold")
        return self._convolve(x, kernel_map, x.coordinates)


class SparseConv3d(_Convolution):
    """Strided sparse convolution: a voxel comes out wherever any tap meets a voxel.

    The output grid has floor((n + 2 padding - dilation (k - 1) - 1) / stride) + 1 voxels along each axis.
    """

    transposed = False
    output_padding: tuple[int, ...] | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        algo=None,
        fp32_accum: bool | None = None,
        record_voxel_count: bool = False,
        large_kernel_fast_algo: bool = False,
        name=None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, groups, bias)
        self.stride = _axes("stride", stride, self.ndim, 1)
        self.padding = _axes("padding", padding, self.ndim, 0)
        self.dilation = _axes("dilation", dilation, self.ndim, 1)
        self.indice_key = indice_key
        if self._is_pointwise and max(self.padding) > 0:
            raise ValueError(f"padding: expected 0 with kernel size 1 and stride 1, given {padding!r}")

    @property
    def _is_pointwise(self) -> bool:
        return max(self.kernel_size) == 1 and max(self.stride) == 1

    def _geometry(self) -> Geometry:
        return Geometry(
            _widen(self.kernel_size, 1),
            _widen(self.stride, 1),
            _widen(self.padding, 0),
            _widen(self.dilation, 1),
            self.transposed,
            _widen(self.output_padding or (), 0),
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self._is_pointwise:
            return self._pointwise(x)
        layer = _strided(x, self._geometry(), self.indice_key)
        return self._convolve(x, layer.kernel_map, layer.target)


class SparseConvTranspose3d(SparseConv3d):
    """Transposed sparse convolution: every voxel spreads to i * stride - padding + k * dilation.

    The output grid has (n - 1) stride - 2 padding + k + output_padding voxels along each axis, as in spconv, which has no
    `output_padding`: with a dilation the farthest taps are cut off. As in PyTorch it is below the larger of stride and
    dilation.
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        algo=None,
        fp32_accum: bool | None = None,
        record_voxel_count: bool = False,
        large_kernel_fast_algo: bool = False,
        name=None,
        *,
        output_padding=0,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, indice_key)
        self.output_padding = _axes("output_padding", output_padding, self.ndim, 0)
        output_padding_of(type(self).__name__, _widen(self.output_padding, 0), _widen(self.stride, 1), _widen(self.dilation, 1))
        if self._is_pointwise and any(self.output_padding):
            raise ValueError(f"output_padding: expected 0 with kernel size 1 and stride 1, given {output_padding!r}")


class SparseInverseConv3d(_Convolution):
    """The inverse of the layer under `indice_key`: back to that layer's input voxels, by its pairs exchanged.

    Undoes strided, transposed and pooling layers. With kernel 1 it is pointwise and stays on its voxels, as in spconv, whose
    inverse has no groups: here they are given by name.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        indice_key: str,
        bias: bool = True,
        algo=None,
        fp32_accum: bool | None = None,
        large_kernel_fast_algo: bool = False,
        name=None,
        *,
        groups: int = 1,
    ):
        super().__init__(in_channels, out_channels, kernel_size, groups, bias)
        self.indice_key = indice_key

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self._is_pointwise:
            return self._pointwise(x)
        layer = x.indice_dict.get(self.indice_key)
        if layer is None or layer.kind == "submanifold":
            known = sorted(key for key, value in x.indice_dict.items() if value.kind != "submanifold")
            raise ValueError(f"indice_key: expected the key of a strided layer, one of {known}, given {self.indice_key!r}")
        if layer.kernel_map.geometry.kernel != _widen(self.kernel_size, 1):
            raise ValueError(
                f"kernel_size: expected {layer.kernel_map.geometry.kernel} of the layer {self.indice_key!r}, "
                f"given {self.kernel_size}"
            )
        if layer.target is not x.coordinates and not np.array_equal(layer.target.coords.numpy(), x.coordinates.coords.numpy()):
            raise ValueError(f"input: expected the voxels that the layer {self.indice_key!r} put out")
        return self._convolve(x, _inverse(x, layer), layer.source)


class SparseMaxPool3d(SparseModule):
    """Maximum over the voxels of each window.

    `from_zero`: start from 0 instead of from the first voxel, so that negative maxima come out as 0, as spconv does on a
    CPU. `ceil_mode`: windows that begin within the grid and end behind it count too, as in PyTorch.
    """

    ndim = 3

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        indice_key: str | None = None,
        algo=None,
        record_voxel_count: bool = False,
        name=None,
        *,
        from_zero: bool = False,
        ceil_mode: bool = False,
    ):
        super().__init__()
        self.kernel_size = _axes("kernel_size", kernel_size, self.ndim, 1)
        check_taps(type(self).__name__, self.kernel_size)
        self.stride = self.kernel_size if stride is None else _axes("stride", stride, self.ndim, 1)
        self.padding = _axes("padding", padding, self.ndim, 0)
        self.dilation = _axes("dilation", dilation, self.ndim, 1)
        self.indice_key = indice_key
        self.from_zero = check_flag(type(self).__name__, "from_zero", from_zero)
        self.ceil_mode = check_ceil_mode(type(self).__name__, ceil_mode)

    def _pool(self, feats, kernel_map):
        return functional.pool(feats, kernel_map, "max", max_from_zero=self.from_zero)

    def forward(self, x: SparseTensor, coordinates=None) -> SparseTensor:
        """`coordinates`: output voxels that the caller chose, as for a convolution; one that meets no voxel gets 0."""
        _check_input(self, x)
        geometry = Geometry(
            _widen(self.kernel_size, 1),
            _widen(self.stride, 1),
            _widen(self.padding, 0),
            _widen(self.dilation, 1),
            ceil_mode=self.ceil_mode,
        )
        if coordinates is None:
            layer = _strided(x, geometry, self.indice_key)
        else:
            layer = _chosen(x, geometry, self.indice_key, coordinates)
        return x.moved_to(self._pool(x.feats, layer.kernel_map), layer.target)


class SparseAvgPool3d(SparseMaxPool3d):
    """Mean over the voxels of each window; `count_bias` is added to their number before dividing."""

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        indice_key: str | None = None,
        algo=None,
        record_voxel_count: bool = False,
        name=None,
        *,
        count_bias: int = 0,
        ceil_mode: bool = False,
    ):
        super().__init__(kernel_size, stride, padding, dilation, indice_key, ceil_mode=ceil_mode)
        self.count_bias = check_int(type(self).__name__, "count_bias", count_bias, 0)

    def _pool(self, feats, kernel_map):
        return functional.pool(feats, kernel_map, "mean", count_bias=self.count_bias)


class SparseSumPool3d(SparseMaxPool3d):
    """Sum over the voxels of each window."""

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        indice_key: str | None = None,
        algo=None,
        record_voxel_count: bool = False,
        name=None,
        *,
        ceil_mode: bool = False,
    ):
        super().__init__(kernel_size, stride, padding, dilation, indice_key, ceil_mode=ceil_mode)

    def _pool(self, feats, kernel_map):
        return functional.pool(feats, kernel_map, "sum")


def _in_fewer_dimensions(base: type, ndim: int) -> type:
    name = base.__name__.replace("3d", f"{ndim}d")
    return type(name, (base,), {"ndim": ndim, "__doc__": f"`{base.__name__}` in {ndim} dimension{'s' * (ndim > 1)}."})


_ALL = (
    SubMConv3d,
    SparseConv3d,
    SparseConvTranspose3d,
    SparseInverseConv3d,
    SparseMaxPool3d,
    SparseAvgPool3d,
    SparseSumPool3d,
)
SubMConv1d, SparseConv1d, SparseConvTranspose1d, SparseInverseConv1d, SparseMaxPool1d, SparseAvgPool1d, SparseSumPool1d = (
    _in_fewer_dimensions(base, 1) for base in _ALL
)
SubMConv2d, SparseConv2d, SparseConvTranspose2d, SparseInverseConv2d, SparseMaxPool2d, SparseAvgPool2d, SparseSumPool2d = (
    _in_fewer_dimensions(base, 2) for base in _ALL
)

__all__ = sorted(base.__name__.replace("3d", f"{ndim}d") for base in _ALL for ndim in (1, 2, 3))
