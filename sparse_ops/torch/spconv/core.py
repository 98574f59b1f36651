"""`SparseConvTensor`: features on voxels, with spconv's names, and what layers leave under their `indice_key`."""

import enum
import sys
from functools import cache
from typing import Any

import numpy as np
import torch

from tir_kernels.dispatch import host_target
from tir_kernels.layout import PairsByBlock

from ...eager.arrays import describe
from ...op.numbers import as_axes, shown
from ..callback import pairs_by_tap
from ..ops import CALLS
from .ops import ConvAlgo
from .sites import MOST_AXES, Built, Sites, as_size, as_sizes, narrow_coords, sites_of, surely_differ, widen

_NO_GRID = torch.Tensor()


class Activation(enum.IntEnum):
    """What a convolution applies to its results; names and numbers are those of `cumm.tensorview.gemm.Activation`."""

    None_ = 0
    ReLU = 1
    Sigmoid = 2
    LeakyReLU = 3


def expand_nd(ndim: int, val) -> list[int]:
    """An int for each of `ndim` axes. ValueError for anything but an int or `ndim` of them."""
    axes = as_axes(val, ndim)
    if axes is None:
        raise ValueError(f"val: expected an int or {ndim} of them, given {shown(val)}")
    return list(axes)


def scatter_nd(indices: torch.Tensor, updates: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """A tensor of `shape` that holds `updates` at `indices` [..., d] along its first d axes, and zeros elsewhere.

    Of indices that repeat, one wins.
    """
    depth = indices.shape[-1]
    out = torch.zeros(*shape, dtype=updates.dtype, device=updates.device)
    places = indices.reshape(-1, depth)
    out[tuple(places.unbind(1))] = updates.reshape(-1, *shape[depth:])
    return out


class IndiceData:
    """What a layer leaves under its `indice_key`: voxels and grids on both sides, its geometry, and its map.

    `indice_pairs` int32 [2, taps, N] and `indice_pair_num` int32 [taps], in spconv's layout, are put together when they are
    asked for: of each tap the input and the output rows, and -1 behind them. As there, a submanifold map counts no pairs of the
    central tap and of those behind it, which mirror those before.
    """

    def __init__(
        self,
        out_indices,
        indices,
        indice_pairs,
        indice_pair_num,
        spatial_shape,
        out_spatial_shape,
        is_subm: bool,
        algo: ConvAlgo,
        ksize: list[int],
        stride: list[int],
        dilation: list[int],
        padding: list[int],
        voxel_num: Any = None,
    ):
        self.out_indices = out_indices
        self.indices = indices
        self._pairs = None if indice_pairs is None else (indice_pairs, indice_pair_num)
        self.spatial_shape = spatial_shape
        self.out_spatial_shape = out_spatial_shape
        self.is_subm = is_subm
        self.algo = algo
        self.ksize = ksize
        self.stride = stride
        self.dilation = dilation
        self.padding = padding
        self.voxel_num = voxel_num
        self._built: Built | None = None
        self._source: Sites | None = None
        self._target: Sites | None = None

    @classmethod
    def of(cls, layer, built: Built, sides: tuple[Sites, Sites], spatial_shape: list, out_spatial_shape: list) -> "IndiceData":
        """What a convolution or a pool leaves behind; sides: the voxels that it read and those that it made."""
        source, target = sides
        data = cls(
            *(target.indices, source.indices, None, None, spatial_shape, out_spatial_shape, layer.subm, layer.algo),
            *(layer.kernel_size, layer.stride, layer.dilation, layer.padding),
        )
        data._built, data._source, data._target = built, source, target
        return data

    indice_pairs = property(lambda self: self._both_pairs()[0])
    indice_pair_num = property(lambda self: self._both_pairs()[1])

    def _both_pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._pairs is None:
            with host_target():  # whose maps are pairs
                pair_in, pair_out, segment, _ = self._built.arrays
            block_rows = PairsByBlock.block_rows(len(self.out_indices))
            sides = pairs_by_tap(pair_in, pair_out, segment, block_rows)
            pairs = torch.full((2, len(sides[0]), len(self.indices)), -1, dtype=torch.int32)
            for side, rows_by_tap in enumerate(sides):
                for tap, rows in enumerate(rows_by_tap):
                    pairs[side, tap, : len(rows)] = rows
            counts = torch.tensor([len(rows) for rows in sides[0]], dtype=torch.int32)
            if self.is_subm:
                counts[len(counts) // 2 :] = 0
            self._pairs = pairs, counts
        return self._pairs


class SparseConvTensor:
    """Features on voxels.

    features: float32, bfloat16 or float16 [N, C]. indices: int32 [N, 1 + axes], one to three axes, as (batch, axes...), no row
    twice. spatial_shape: extent along each axis. batch_size: number of batch elements. Extents and batch size may be numbers
    that only the run of an exported program knows. indice_dict: what layers left under their `indice_key`. `grid`,
    `voxel_num`, `permanent_thrust_allocator`, `enable_timer` and `force_algo` are kept or ignored: they change no result.

    Raises ValueError naming the argument for a wrong kind, rank, dtype or number of axes.
    """

    def __init__(
        self,
        features: torch.Tensor,
        indices: torch.Tensor,
        spatial_shape,
        batch_size: int,
        grid: torch.Tensor | None = None,
        voxel_num: torch.Tensor | None = None,
        indice_dict: dict | None = None,
        benchmark: bool = False,
        permanent_thrust_allocator: bool = False,
        enable_timer: bool = False,
        force_algo: ConvAlgo | None = None,
    ):
        _check_features(features)
        axes = _check_indices(indices)
        self._features = features
        self.indices = indices
        self.spatial_shape = list(as_sizes("spatial_shape", spatial_shape, axes))  # the caller may change his
        if any(isinstance(size, int) and size < 1 for size in self.spatial_shape):
            raise ValueError(f"spatial_shape: expected extents of at least 1, given {shown(spatial_shape)}")
        self.batch_size = as_size("batch_size", batch_size)
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise ValueError(f"batch_size: expected an int of at least 1, given {shown(batch_size)}")
        self.indice_dict = {} if indice_dict is None else indice_dict
        self.grid = _NO_GRID if grid is None else grid
        self.voxel_num = voxel_num
        self.benchmark = benchmark
        self.benchmark_record: dict = {}
        self.thrust_allocator = None
        self._timer = None
        self.force_algo = force_algo
        self.int8_scale: np.ndarray | None = None
        self._sites = sites_of(indices)

    def __repr__(self) -> str:
        return f"SparseConvTensor[shape={self._features.shape}]"

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_sites"}

    @property
    def features(self) -> torch.Tensor:
        return self._features

    @features.setter
    def features(self, val):
        raise ValueError("features: cannot be assigned: make a tensor of others with x.replace_feature(...)")

    @property
    def sites(self) -> Sites:
        """The voxels of `indices`, which may have been assigned or written into."""
        found = vars(self).get("_sites")
        if found is None or found.indices is not self.indices or found.changed:
            found = self._sites = sites_of(self.indices)
        return found

    @property
    def is_quantized(self) -> bool:
        return self._features.dtype == torch.qint8

    def q_scale(self) -> float:
        """ValueError unless the features are quantized."""
        if not self.is_quantized:
            raise ValueError(f"features: expected quantized ones, given {describe(self._features)}")
        return self._features.q_scale()

    def dequantize(self) -> "SparseConvTensor":
        return self.replace_feature(self._features.dequantize())

    @property
    def spatial_size(self):
        return np.prod(self.spatial_shape)

    def moved(self, features: torch.Tensor, **fields) -> "SparseConvTensor":
        """A tensor of other features, with all else of this one but the given fields."""
        _check_features(features)
        moved = object.__new__(type(self))
        vars(moved).update(vars(self), _features=features, **fields)
        return moved

    def replace_feature(self, feature: torch.Tensor) -> "SparseConvTensor":
        """Other features on the same voxels."""
        return self.moved(feature)

    def shadow_copy(self) -> "SparseConvTensor":
        """A tensor of the same features, voxels and maps."""
        return self.moved(self._features)

    def select_by_index(self, valid_indices: torch.Tensor) -> "SparseConvTensor":
        """Some of the rows, by number or by mask, without the maps of all."""
        return self.moved(self._features[valid_indices], indices=self.indices[valid_indices], indice_dict={})

    def minus(self) -> "SparseConvTensor":
        return self.replace_feature(-self._features)

    @classmethod
    def from_dense(cls, x: torch.Tensor) -> "SparseConvTensor":
        """The places of x [B, *spatial_shape, C] where a channel is not 0, in ascending order."""
        if not isinstance(x, torch.Tensor) or not 3 <= x.ndim <= MOST_AXES + 2:
            raise ValueError(f"x: expected a tensor [B, *spatial_shape, C] of one to three axes, given {describe(x)}")
        places = (x != 0).any(-1).nonzero()  # int64 [N, 1 + axes]
        return cls(x[tuple(places.unbind(1))], places.int(), x.shape[1:-1], x.shape[0])

    def find_indice_pair(self, key) -> IndiceData | None:
        """What a layer left under its `indice_key`; None for no key, and for one that is not there."""
        return None if key is None else self.indice_dict.get(key)

    def dense(self, channels_first: bool = True) -> torch.Tensor:
        """[B, C, *spatial_shape], or [B, *spatial_shape, C] unless `channels_first`, with zeros where there is no voxel.

        ValueError for the first row that lies outside or repeats another.
        """
        shape, channels = as_sizes("spatial_shape", self.spatial_shape, self.indices.shape[1] - 1), self._features.shape[1]
        dense = CALLS["to_dense"](self._features, self.sites.coords, self.batch_size, widen(shape, 1), not channels_first)
        if len(shape) == MOST_AXES:
            return dense
        return dense.reshape(self.batch_size, *((channels, *shape) if channels_first else (*shape, channels)))

    def _sum(self, other) -> torch.Tensor:
        """Features plus those of a tensor on the same voxels, plus a torch tensor, or plus the 0 that `sum` begins with."""
        if isinstance(other, int) and other == 0:
            return self._features
        theirs = getattr(other, "features", other)
        if not isinstance(theirs, torch.Tensor):
            raise ValueError(f"+: expected a SparseConvTensor or a torch tensor, given {describe(other)}")
        if theirs is not other and surely_differ(theirs.shape, self._features.shape):
            raise ValueError(f"+: expected features {list(self._features.shape)}, given {list(theirs.shape)}; see sparse_add")
        return self._features + theirs

    def __add__(self, other) -> "SparseConvTensor":
        """Features of both, row by row; other voxels are `functional.sparse_add`'s."""
        return self.replace_feature(self._sum(other))

    __radd__ = __add__

    def __iadd__(self, other) -> "SparseConvTensor":
        self._features = self._sum(other)
        return self


def as_sparse(x) -> SparseConvTensor:
    """`x`, or, for a tensor of spconv itself, the same as one of ours that still is one of spconv's.

    ValueError for anything else.
    """
    if isinstance(x, SparseConvTensor):
        return x
    real = real_tensor_class()
    if real is None or not isinstance(x, real):
        raise ValueError(f"input: expected a SparseConvTensor, given {describe(x)}")
    _check_features(x.features)
    axes = _check_indices(x.indices)
    vars(x)["_sites"] = sites_of(x.indices)  # they stay with it, for the next layer on it
    ours = object.__new__(both_classes(real))
    vars(ours).update(vars(x))
    ours.spatial_shape = as_sizes("spatial_shape", x.spatial_shape, axes)
    ours.batch_size = as_size("batch_size", x.batch_size)
    return ours


def is_sparse(x) -> bool:
    """Whether `x` is a SparseConvTensor, ours or spconv's."""
    real = real_tensor_class()
    return isinstance(x, SparseConvTensor) or (real is not None and isinstance(x, real))


def real_tensor_class() -> type | None:
    """spconv's own class, where a program has imported it."""
    core = sys.modules.get("spconv.pytorch.core")
    return getattr(core, "SparseConvTensor", None)


@cache
def both_classes(real: type) -> type:
    """A class of tensors that are ours and, for code that asks, spconv's."""
    names = {"__module__": __name__, "__reduce_ex__": lambda self, _: (_restored, (self.__getstate__(),))}
    return type(real)("SparseConvTensor", (SparseConvTensor, real), names)


def _restored(state: dict) -> SparseConvTensor:
    """A copy of a tensor that was ours and spconv's; ours alone where spconv is not imported."""
    real = real_tensor_class()
    tensor = object.__new__(SparseConvTensor if real is None else both_classes(real))
    vars(tensor).update(state)
    return tensor


def _check_features(features) -> None:
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise ValueError(f"features: expected a tensor [N, C], given {describe(features)}")


def _check_indices(indices) -> int:
    """The number of axes."""
    if not isinstance(indices, torch.Tensor) or indices.ndim != 2 or not 2 <= indices.shape[1] <= MOST_AXES + 1:
        raise ValueError(f"indices: expected int32 [N, 1 + axes] of one to three axes, given {describe(indices)}")
    if indices.dtype != torch.int32:
        raise ValueError(f"indices: only int32 is supported, given {describe(indices)}: pass indices.int()")
    return indices.shape[1] - 1


__all__ = ["Activation", "IndiceData", "SparseConvTensor", "expand_nd", "narrow_coords", "scatter_nd"]
