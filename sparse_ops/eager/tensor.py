"""`SparseTensor`: features and coordinates, with the kernel maps of the coordinates built once and shared.

What is here may be copied and pickled: voxels, features and what layers left under their keys travel as numpy arrays (features
that are torch tensors as these); maps that are kept by geometry are built again.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import ClassVar

import numpy as np
import tvm

from tir_kernels.spec.coordinate_index import BATCH_LIMIT, COORDINATE_LIMIT

from ..devices import place, placed
from ..op.numbers import as_axes, as_int, shown
from ..op.signature import FLOATS
from . import functional
from .arrays import TORCH, Checked, Portable, as_kind, as_tensor, describe, device_of, dtype_of, kind_of, reshape
from .call import CoordinateIndex, KernelMap, on_device_of

MAX_DIMENSIONS = 3


@dataclass(eq=False)
class CoordinateSet(Portable):
    """Voxel coordinates and what was built from them. Tensors with the same voxels share one.

    `coords` int32 [N, 4] as (batch, x, y, z); in fewer dimensions the leading axes are 0. `spatial_shape`: extent along
    each of the `dimensions` axes, or None for one more than the largest coordinate. `unbounded`: a lattice without a shape, on
    which coordinates may be negative. `distinct`: whether it is known that no row repeats another. `maps`: kernel maps by
    geometry and place, and what else is found once. `index`: what maps and look-ups of these voxels share.
    """

    coords: tvm.runtime.Tensor
    dimensions: int
    spatial_shape: tuple[int, ...] | None
    batch_size: int
    unbounded: bool = False
    distinct: bool = False
    maps: dict = field(default_factory=dict, repr=False)
    index: CoordinateIndex = field(default_factory=CoordinateIndex, repr=False)
    _rebuilt: ClassVar[dict] = {"maps": dict, "index": CoordinateIndex}

    def at(self, coords: tvm.runtime.Tensor) -> "CoordinateSet":
        """The same grid with other voxels, of which nothing is built yet."""
        return replace(self, coords=coords, **{name: make() for name, make in self._rebuilt.items()})

    def extent(self) -> tuple[int, ...]:
        """`spatial_shape`, or what is inferred for it. ValueError on an unbounded lattice."""
        if self.unbounded:
            raise ValueError(
                "spatial_shape: voxels at negative coordinates lie on a lattice that has none: take the smallest coordinate of "
                "each axis off and give a spatial_shape"
            )
        if self.spatial_shape is not None:
            return self.spatial_shape
        if "extent" not in self.maps:
            axes = as_kind(self.coords, "numpy")[:, 4 - self.dimensions :]
            self.maps["extent"] = tuple(int(n) for n in axes.max(axis=0, initial=-1) + 1)
        return self.maps["extent"]

    def lattice(self) -> tuple[int, ...] | None:
        """The extent, None where there is none."""
        return None if self.unbounded else self.extent()

    def check_distinct(self) -> None:
        """ValueError for the first row that repeats another one; what was found right is not looked at again."""
        if not self.distinct:
            nowhere = np.zeros((0, 4), "int32")  # building the index finds it
            functional.lookup(self.coords, nowhere, index=self.index)
            self.distinct = True

    def batch_index(self) -> np.ndarray:
        """The batch element of every row, int32 [N]."""
        if "batch_index" not in self.maps:
            self.maps["batch_index"] = np.ascontiguousarray(as_kind(self.coords, "numpy")[:, 0])
        return self.maps["batch_index"]

    def same_voxels(self, other: "CoordinateSet") -> bool:
        """Whether rows lie at the same places of the same grid."""
        return self is other or (
            (self.dimensions, self.batch_size, self.lattice()) == (other.dimensions, other.batch_size, other.lattice())
            and np.array_equal(as_kind(self.coords, "numpy"), as_kind(other.coords, "numpy"))
        )


@dataclass(eq=False)
class Layer:
    """What a layer left under its `indice_key`: its map, the coordinates on both sides."""

    kernel_map: KernelMap
    source: CoordinateSet
    target: CoordinateSet
    kind: str  # "submanifold", "strided", or "chosen-output"


class SparseTensor(Portable):
    """Features on voxels.

    feats: float32, bfloat16 or float16 [N, C]; coords: int32 [N, 1 + d], d = 1 to 3, as (batch, x, y, z), one row a voxel, in
    any order. Both are numpy, torch or TVM arrays and are not copied; results are of the kind of `feats`.

    spatial_shape: extent of the grid along the d axes, or an int for a grid with equal sides; None infers one more than the
    largest coordinate where an op needs it. Without a shape coordinates may be negative, and the voxels then lie on a lattice
    without bounds: strided and transposed layers keep every voxel that they reach, at negative coordinates too, and
    `spatial_shape` and `dense()` are refused. batch_size: number of batch elements; None infers it. `indice_dict` maps the
    `indice_key` of layers to their maps, and is shared by all tensors made from this one; give that of another tensor to share
    its maps.

    Raises ValueError naming the argument for a wrong kind, dtype or shape, for lengths that differ, and for the first row
    whose coordinates lie outside of spatial_shape, batch_size or the range (batch 0 to 4095, axes -32768 to 32767).
    Duplicate rows are found by the first layer or sum that looks at the voxels.
    """

    __array_ufunc__ = None  # numpy arrays leave `array + tensor` to the tensor

    def __init__(
        self,
        feats,
        coords,
        spatial_shape=None,
        batch_size: int | None = None,
        *,
        indice_dict: dict | None = None,
        _shared=None,
    ):
        self._kind = kind_of(feats)
        features = as_tensor(feats, "feats", FLOATS, (None, None))
        if _shared is None:
            coordinates = _coordinate_set(coords, spatial_shape, batch_size)
            _shared = coordinates, {} if indice_dict is None else indice_dict
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
        narrow = np.ascontiguousarray(as_kind(coords, "numpy")[:, [0, *range(4 - d, 4)]])
        return as_kind(as_tensor(narrow, "coords", ("int32",), (None, None)), self._kind)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Extent of the grid along each axis. ValueError for voxels that lie on a lattice without bounds."""
        return self.coordinates.extent()

    @property
    def batch_size(self) -> int:
        return self.coordinates.batch_size

    features = property(lambda self: self.feats, doc="spconv's name of `feats`.")
    indices = property(lambda self: self.coords, doc="spconv's name of `coords`.")

    def replace_feature(self, feats) -> "SparseTensor":
        """A tensor with other features on the same voxels; maps are shared."""
        return SparseTensor(feats, None, _shared=(self.coordinates, self.indice_dict))

    def shadow_copy(self) -> "SparseTensor":
        """A tensor of the same features and voxels, as spconv has it."""
        return self.replace_feature(self.feats)

    def moved_to(self, feats, coordinates: CoordinateSet) -> "SparseTensor":
        """A tensor on other voxels that shares this one's `indice_dict`."""
        return SparseTensor(feats, None, _shared=(coordinates, self.indice_dict))

    def with_result(self, feats, coordinates: CoordinateSet) -> "SparseTensor":
        """As `moved_to`, with what an op returned for these voxels, which is not looked at again."""
        moved = object.__new__(SparseTensor)
        moved._kind, moved.feats = self._kind, feats
        moved.coordinates, moved.indice_dict = coordinates, self.indice_dict
        return moved

    def where_it_lies(self) -> AbstractContextManager:
        """A scope in which maps of these voxels are built for the device that features or coordinates lie on, if they do."""
        return on_device_of([self.feats, self.coordinates.coords])

    def kernel_map(self, kernel_size, dilation=1, method: str = "auto") -> KernelMap:
        """The submanifold kernel map of these voxels, built on first use; kernel_size and dilation have three axes."""
        with self.where_it_lies():
            key = ("submanifold", tuple(kernel_size), tuple(dilation), place())
            if key not in self.coordinates.maps:
                self.coordinates.maps[key] = functional.submanifold_map(
                    Checked(self.coordinates.coords, "int32"),
                    tuple(kernel_size),
                    tuple(dilation),
                    method,
                    index=self.coordinates.index,
                )
                self.coordinates.distinct = True
            return self.coordinates.maps[key]

    def dense(self, channels_first: bool = True):
        """[B, C, *spatial_shape], or [B, *spatial_shape, C] if not `channels_first`, with zeros where there is no voxel.

        ValueError for voxels that lie on a lattice without bounds, and for the first row that repeats another.
        """
        if not isinstance(channels_first, bool):
            raise ValueError(f"channels_first: expected True or False, given {shown(channels_first)}")
        d = self.coordinates.dimensions
        shape = (1,) * (3 - d) + tuple(self.spatial_shape)
        coords = as_kind(self.coordinates.coords, self._kind)
        dense = functional.to_dense(self.feats, coords, self.batch_size, shape, not channels_first)
        sizes = list(dense.shape)
        start = 2 if channels_first else 1
        return reshape(dense, sizes[:start] + sizes[start + 3 - d :])

    def find_indice_pair(self, key):
        """What a layer left under its `indice_key`, or None, as spconv has it."""
        return self.indice_dict.get(key)

    def __add__(self, other: "SparseTensor") -> "SparseTensor":
        """The sum of features on the same voxels: `a + b`, and `sum` of a list of tensors.

        Features are of the kind of `a`. Raises ValueError for other channels, dtypes or voxels, where `sparse_add` may serve,
        and for anything but a SparseTensor, to which `replace_feature` may lead.
        """
        if not isinstance(other, SparseTensor):
            raise ValueError(f"+: expected a SparseTensor on the same voxels, given {describe(other)}: use replace_feature")
        _check_alike("+", [self, other])
        if self.feats.shape[1] != other.feats.shape[1]:
            raise ValueError(f"+: expected equal channels, given {self.feats.shape[1]} and {other.feats.shape[1]}")
        total = _combine(self._kind, [self, other], lambda _, arrays: reduce(lambda a, b: a + b, arrays))
        return self.replace_feature(_like_features(total, self))

    def __radd__(self, other) -> "SparseTensor":
        return self if as_int(other) == 0 else self + other  # `sum` begins with 0

    def __repr__(self) -> str:
        rows, channels = self.feats.shape
        shape = self.coordinates.spatial_shape
        return f"SparseTensor({rows} voxels, {channels} channels, batch_size={self.batch_size}, spatial_shape={shape})"


def sparse_add(*tensors: SparseTensor) -> SparseTensor:
    """The sum of tensors, given one by one or in a list, over the union of their voxels, which ascend in (batch, axes...).

    Features may be of different kinds; those of the sum are of the kind of the first. Raises ValueError for none, where
    channels, dtype, axes or given spatial shapes differ, and for the first row of a tensor that repeats another of its rows.
    """
    tensors = _tensors_of(tensors)
    first = tensors[0]
    for other in tensors[1:]:
        for name, mine, theirs in (
            ("channels", first.feats.shape[1], other.feats.shape[1]),
            ("dtype", dtype_of(first.feats), dtype_of(other.feats)),
            ("axes", first.coordinates.dimensions, other.coordinates.dimensions),
            ("spatial_shape", first.coordinates.spatial_shape, other.coordinates.spatial_shape),
        ):
            if mine != theirs:
                raise ValueError(f"tensors: expected equal {name}, given {mine} and {theirs}")
    for tensor in tensors:
        tensor.coordinates.check_distinct()
    every = np.concatenate([tensor.coordinates.coords.numpy() for tensor in tensors])
    coords, inverse = functional.unique(every)
    summed = functional.segment_pool(_combine("numpy", tensors, _rows_after_rows), inverse, len(coords), "sum")
    coordinates = CoordinateSet(
        as_tensor(coords, "coords", ("int32",), (None, 4)),
        first.coordinates.dimensions,
        first.coordinates.spatial_shape,
        max(tensor.batch_size for tensor in tensors),
        unbounded=any(tensor.coordinates.unbounded for tensor in tensors),
        distinct=True,
    )
    return first.moved_to(_like_features(summed, first), coordinates)


def sparse_cat(*tensors: SparseTensor) -> SparseTensor:
    """Features side by side on the union of the voxels, which ascend in (batch, axes...), zeros where a tensor has none.

    Of tensors given one by one or in a list: [N1, C1], [N2, C2], ... -> [M, C1 + C2 + ...], of the kind of the first. Raises
    ValueError for none, where dtype, axes or given shapes differ, and for the first row of a tensor that repeats another
    of its rows. On the same voxels `cat` needs no search.
    """
    tensors = _tensors_of(tensors)
    first = tensors[0]
    for other in tensors[1:]:
        for name, mine, theirs in (
            ("dtype", dtype_of(first.feats), dtype_of(other.feats)),
            ("axes", first.coordinates.dimensions, other.coordinates.dimensions),
            ("spatial_shape", first.coordinates.spatial_shape, other.coordinates.spatial_shape),
        ):
            if mine != theirs:
                raise ValueError(f"tensors: expected equal {name}, given {mine} and {theirs}")
    sets = [as_kind(tensor.coordinates.coords, "numpy") for tensor in tensors]
    coords, _, rows = functional.union(np.concatenate(sets), np.cumsum([0, *map(len, sets)]).astype("int32"))
    parts = [_to_kind(functional.gather_rows(x.feats, own), "numpy") for x, own in zip(tensors, rows, strict=True)]
    coordinates = CoordinateSet(
        as_tensor(coords, "coords", ("int32",), (None, 4)),
        first.coordinates.dimensions,
        first.coordinates.spatial_shape,
        max(tensor.batch_size for tensor in tensors),
        unbounded=any(tensor.coordinates.unbounded for tensor in tensors),
        distinct=True,
    )
    return first.moved_to(_like_features(_columns_by_columns(np, parts), first), coordinates)


def cat(*tensors: SparseTensor) -> SparseTensor:
    """Features side by side on the same voxels, of tensors given one by one or in a list: [N, C1], [N, C2], ... ->
    [N, C1 + C2 + ...], of the kind of the first.

    Raises ValueError for no tensor, and for other voxels or dtypes than those of the first.
    """
    tensors = _tensors_of(tensors)
    _check_alike("tensors", tensors)
    return tensors[0].replace_feature(_like_features(_combine(tensors[0]._kind, tensors, _columns_by_columns), tensors[0]))


def _tensors_of(given: tuple) -> Sequence[SparseTensor]:
    """Tensors given one by one or in a list."""
    tensors = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    if not tensors:
        raise ValueError("tensors: expected at least one SparseTensor, given none")
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, SparseTensor):
            raise ValueError(f"tensors[{i}]: expected a SparseTensor, given {describe(tensor)}")
    return tensors


def _check_alike(argument: str, tensors: Sequence[SparseTensor]) -> None:
    """ValueError unless all have the voxels and the dtype of the first."""
    first = tensors[0]
    for other in tensors[1:]:
        if not first.coordinates.same_voxels(other.coordinates):
            raise ValueError(f"{argument}: expected features on the same voxels, given {first} and {other}; see sparse_add")
        if dtype_of(first.feats) != dtype_of(other.feats):
            raise ValueError(f"{argument}: expected equal dtypes, given {dtype_of(first.feats)} and {dtype_of(other.feats)}")


def _combine(kind: str, tensors: Sequence[SparseTensor], how):
    """`how(library, arrays)` of the features of tensors, as arrays of one kind; library: numpy, or torch for torch's."""
    used = kind if kind in TORCH else "numpy"
    arrays = [t.feats if t._kind == used else _to_kind(t.feats, used) for t in tensors]
    if used in TORCH:
        import torch

        return how(torch, arrays)
    return _to_kind(how(np, arrays), kind)


def _rows_after_rows(library, arrays):
    return library.concatenate(arrays, 0)


def _columns_by_columns(library, arrays):
    return library.concatenate(arrays, 1)


def _to_kind(feats, kind: str):
    """Features [N, C] as an array of another kind."""
    return feats if kind_of(feats) == kind else as_kind(as_tensor(feats, "feats", FLOATS, (None, None)), kind)


def _like_features(feats, tensor: SparseTensor):
    """Features [N, C] as an array of the kind of a tensor's, where these lie."""
    return placed(_to_kind(feats, tensor._kind), device_of(tensor.feats))


def _as_coords(coords) -> tuple[tvm.runtime.Tensor, int]:
    """coords [N, 1 + d] as a tensor [N, 4] with leading unit axes, and d."""
    width = coords.shape[1] if hasattr(coords, "shape") and len(coords.shape) == 2 else None
    if width is not None and 2 <= width <= MAX_DIMENSIONS:
        narrow = as_kind(as_tensor(coords, "coords", ("int32",), (None, width)), "numpy")
        wide = np.zeros((len(narrow), 4), "int32")
        wide[:, 0], wide[:, 5 - width :] = narrow[:, 0], narrow[:, 1:]
        return as_tensor(wide, "coords", ("int32",), (None, 4)), width - 1
    if width is not None and width > 1 + MAX_DIMENSIONS:
        raise ValueError(f"coords: expected one to three axes beside the batch index, given {width - 1}")
    return as_tensor(coords, "coords", ("int32",), (None, 4)), MAX_DIMENSIONS


def _coordinate_set(coords, spatial_shape, batch_size: int | None) -> CoordinateSet:
    """Coordinates checked against the extents, which are inferred where they are not given."""
    points, dimensions = _as_coords(coords)
    rows, shape, elements = as_kind(points, "numpy"), None, None
    if spatial_shape is not None:
        shape = as_axes(spatial_shape, dimensions)
        if shape is None or not all(1 <= n <= COORDINATE_LIMIT for n in shape):
            raise ValueError(
                f"spatial_shape: expected {dimensions} extents from 1 to {COORDINATE_LIMIT}, or an int for all of them, "
                f"given {shown(spatial_shape)}"
            )
    if batch_size is not None:
        elements = as_int(batch_size)
        if elements is None or not 1 <= elements <= BATCH_LIMIT:
            raise ValueError(f"batch_size: expected an int from 1 to {BATCH_LIMIT}, given {shown(batch_size)}")
    ranges = [(0, (elements or BATCH_LIMIT) - 1, "batch index", 0)]
    for axis in range(dimensions):
        low, high = (-COORDINATE_LIMIT, COORDINATE_LIMIT - 1) if shape is None else (0, shape[axis] - 1)
        ranges.append((low, high, "xyz"[axis], 4 - dimensions + axis))
    if not len(rows):
        return CoordinateSet(points, dimensions, shape, elements or 1, distinct=True)
    lowest, highest = rows.min(0).tolist(), rows.max(0).tolist()
    for low, high, name, column in ranges:
        if lowest[column] < low or highest[column] > high:
            row = int(((rows[:, column] < low) | (rows[:, column] > high)).argmax())
            raise ValueError(f"coords: row {row} has {name} {rows[row, column]}, expected {low} to {high}")
    return CoordinateSet(points, dimensions, shape, elements or highest[0] + 1, unbounded=min(lowest[1:]) < 0)
