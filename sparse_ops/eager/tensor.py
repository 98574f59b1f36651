"""`SparseTensor`: features and coordinates, with the kernel maps of the coordinates built once and shared."""

from dataclasses import dataclass, field

import numpy as np
import tvm

from tir_kernels.spec.coordinate_index import BATCH_LIMIT, COORDINATE_LIMIT

from ..op.signature import FLOATS
from . import functional
from .arrays import Checked, as_kind, as_tensor, kind_of
from .call import KernelMap

MAX_DIMENSIONS = 3


@dataclass(eq=False)
class CoordinateSet:
    """Voxel coordinates and what was built from them. Tensors with the same voxels share one.

    `coords` int32 [N, 4] as (batch, x, y, z); in fewer dimensions the leading axes are 0. `spatial_shape`: extent along
    each of the `dimensions` axes, or None for one more than the largest coordinate. `maps`: kernel maps by geometry.
    """

    coords: tvm.runtime.Tensor
    dimensions: int
    spatial_shape: tuple[int, ...] | None
    batch_size: int
    maps: dict = field(default_factory=dict, repr=False)

    def extent(self) -> tuple[int, ...]:
        """`spatial_shape`, or what is inferred for it."""
        if self.spatial_shape is None:
            axes = np.from_dlpack(self.coords)[:, 4 - self.dimensions :]
            self.spatial_shape = tuple(int(n) for n in axes.max(axis=0, initial=-1) + 1)
        return self.spatial_shape


@dataclass(eq=False)
class Layer:
    """What a layer left under its `indice_key`: its map, the coordinates on both sides."""

    kernel_map: KernelMap
    source: CoordinateSet
    target: CoordinateSet
    kind: str  # "submanifold" or "strided"


class SparseTensor:
    """Features on voxels.

    feats: float32, bfloat16 or float16 [N, C]; coords: int32 [N, 1 + d], d = 1 to 3, as (batch, x, y, z), one row a voxel, in
    any order. Both are numpy, torch or TVM arrays and are not copied; results are of the kind of `feats`.

    spatial_shape: extent of the grid along the d axes; None infers one more than the largest coordinate where an op needs
    it. batch_size: number of batch elements; None infers it. `indice_dict` maps the `indice_key` of layers to their maps,
    and is shared by all tensors made from this one.

    Raises ValueError naming the argument for a wrong kind, dtype or shape, for lengths that differ, and for the first row
    whose coordinates lie outside of spatial_shape, batch_size or the range (batch 0 to 4095, axes -32768 to 32767).
    Duplicate rows are found when a kernel map is built.
    """

    def __init__(self, feats, coords, spatial_shape=None, batch_size: int | None = None, *, _shared=None):
        self._kind = kind_of(feats)
        features = as_tensor(feats, "feats", FLOATS, (None, None))
        if _shared is None:
            points, dimensions = _as_coords(coords)
            batch_size = _check_range(np.from_dlpack(points), dimensions, spatial_shape, batch_size)
            shape = None if spatial_shape is None else tuple(int(n) for n in spatial_shape)
            _shared = CoordinateSet(points, dimensions, shape, batch_size), {}
        self.coordinates, self.indice_dict = _shared
        if features.shape[0] != self.coordinates.coords.shape[0]:
            raise ValueError(
                f"feats: expected {self.coordinates.coords.shape[0]} rows, one for each row of coords, "
                f"given {features.shape[0]}"
            )
        self.feats = feats

    @property
    def coords(self):
        """int32 [N, 1 + d], of the kind of the features."""
        coords, d = self.coordinates.coords, self.coordinates.dimensions
        if d == MAX_DIMENSIONS:
            return as_kind(coords, self._kind)
        narrow = np.ascontiguousarray(np.from_dlpack(coords)[:, [0, *range(4 - d, 4)]])
        return as_kind(as_tensor(narrow, "coords", ("int32",), (None, None)), self._kind)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Extent of the grid along each axis."""
        return self.coordinates.extent()

    @property
    def batch_size(self) -> int:
        return self.coordinates.batch_size

    features = property(lambda self: self.feats, doc="spconv's name of `feats`.")
    indices = property(lambda self: self.coords, doc="spconv's name of `coords`.")

    def replace_feature(self, feats) -> "SparseTensor":
        """A tensor with other features on the same voxels; maps are shared."""
        return SparseTensor(feats, None, _shared=(self.coordinates, self.indice_dict))

    def moved_to(self, feats, coordinates: CoordinateSet) -> "SparseTensor":
        """A tensor on other voxels that shares this one's `indice_dict`."""
        return SparseTensor(feats, None, _shared=(coordinates, self.indice_dict))

    def with_result(self, feats, coordinates: CoordinateSet) -> "SparseTensor":
        """As `moved_to`, with what an op returned for these voxels, which is not looked at again."""
        moved = object.__new__(SparseTensor)
        moved._kind, moved.feats = self._kind, feats
        moved.coordinates, moved.indice_dict = coordinates, self.indice_dict
        return moved

    def kernel_map(self, kernel_size, dilation=1, method: str = "auto") -> KernelMap:
        """The submanifold kernel map of these voxels, built on first use; kernel_size and dilation have three axes."""
        key = ("submanifold", tuple(kernel_size), tuple(dilation))
        if key not in self.coordinates.maps:
            self.coordinates.maps[key] = functional.submanifold_map(
                Checked(self.coordinates.coords, "int32"), tuple(kernel_size), tuple(dilation), method
            )
        return self.coordinates.maps[key]

    def dense(self, channels_last: bool = False):
        """[B, C, *spatial_shape] (or [B, *spatial_shape, C]) with zeros where there is no voxel."""
        d = self.coordinates.dimensions
        shape = (1,) * (3 - d) + tuple(self.spatial_shape)
        coords = as_kind(self.coordinates.coords, self._kind)
        dense = functional.to_dense(self.feats, coords, self.batch_size, shape, channels_last)
        sizes = list(dense.shape)
        start = 1 if channels_last else 2
        return dense.reshape(sizes[:start] + sizes[start + 3 - d :])

    def __repr__(self) -> str:
        rows, channels = self.feats.shape
        shape = self.coordinates.spatial_shape
        return f"SparseTensor({rows} voxels, {channels} channels, batch_size={self.batch_size}, spatial_shape={shape})"


def sparse_add(*tensors: SparseTensor) -> SparseTensor:
    """The sum of tensors over the union of their voxels, which ascend in (batch, axes...).

    Raises ValueError where channels, dtype, axes or given spatial shapes differ.
    """
    first = tensors[0]
    for other in tensors[1:]:
        for name, mine, theirs in (
            ("channels", first.feats.shape[1], other.feats.shape[1]),
            ("dtype", first.feats.dtype, other.feats.dtype),
            ("axes", first.coordinates.dimensions, other.coordinates.dimensions),
            ("spatial_shape", first.coordinates.spatial_shape, other.coordinates.spatial_shape),
        ):
            if mine != theirs:
                raise ValueError(f"tensors: expected equal {name}, given {mine} and {theirs}")
    every = np.concatenate([tensor.coordinates.coords.numpy() for tensor in tensors])
    coords, inverse = functional.unique(every)
    feats = np.concatenate([as_kind(as_tensor(t.feats, "feats", FLOATS, (None, None)), "numpy") for t in tensors])
    summed = functional.segment_pool(feats, inverse, len(coords), "sum")
    coordinates = CoordinateSet(
        as_tensor(coords, "coords", ("int32",), (None, 4)),
        first.coordinates.dimensions,
        first.coordinates.spatial_shape,
        max(tensor.batch_size for tensor in tensors),
    )
    return first.moved_to(as_kind(as_tensor(summed, "feats", FLOATS, (None, None)), first._kind), coordinates)


def _as_coords(coords) -> tuple[tvm.runtime.Tensor, int]:
    """coords [N, 1 + d] as a tensor [N, 4] with leading unit axes, and d."""
    width = coords.shape[1] if hasattr(coords, "shape") and len(coords.shape) == 2 else None
    if width is not None and 2 <= width <= MAX_DIMENSIONS:
        narrow = np.from_dlpack(as_tensor(coords, "coords", ("int32",), (None, width)))
        wide = np.zeros((len(narrow), 4), "int32")
        wide[:, 0], wide[:, 5 - width :] = narrow[:, 0], narrow[:, 1:]
        return as_tensor(wide, "coords", ("int32",), (None, 4)), width - 1
    if width is not None and width > 1 + MAX_DIMENSIONS:
        raise ValueError(f"coords: expected one to three axes beside the batch index, given {width - 1}")
    return as_tensor(coords, "coords", ("int32",), (None, 4)), MAX_DIMENSIONS


def _check_range(coords: np.ndarray, dimensions: int, spatial_shape, batch_size: int | None) -> int:
    """Check coords [N, 4] against the extents; returns the number of batch elements."""
    if spatial_shape is not None:
        lengths = list(spatial_shape)
        if len(lengths) != dimensions or not all(1 <= int(n) <= COORDINATE_LIMIT for n in lengths):
            raise ValueError(
                f"spatial_shape: expected {dimensions} extents from 1 to {COORDINATE_LIMIT}, given {spatial_shape!r}"
            )
    if batch_size is not None and not 1 <= batch_size <= BATCH_LIMIT:
        raise ValueError(f"batch_size: expected 1 to {BATCH_LIMIT}, given {batch_size!r}")
    ranges = [(0, (BATCH_LIMIT if batch_size is None else batch_size) - 1, "batch index", 0)]
    for axis in range(dimensions):
        low, high = -COORDINATE_LIMIT, COORDINATE_LIMIT - 1
        if spatial_shape is not None:
            low, high = 0, int(lengths[axis]) - 1
        ranges.append((low, high, "xyz"[axis], 4 - dimensions + axis))
    if not len(coords):
        return 1 if batch_size is None else batch_size
    lowest, highest = coords.min(0).tolist(), coords.max(0).tolist()
    for low, high, name, column in ranges:
        if lowest[column] < low or highest[column] > high:
            row = int(((coords[:, column] < low) | (coords[:, column] > high)).argmax())
            raise ValueError(f"coords: row {row} has {name} {coords[row, column]}, expected {low} to {high}")
    return highest[0] + 1 if batch_size is None else batch_size
