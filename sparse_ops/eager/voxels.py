"""Fewer voxels, or those of several tensors: pruning, intersection, and concatenation over a union."""

from dataclasses import replace

import numpy as np

from tir_kernels.spec.flatnonzero import DTYPES

from ..op.signature import FLOATS
from . import functional
from .arrays import Checked, as_kind, as_tensor, describe, dtype_of
from .tensor import CoordinateSet, SparseTensor


def prune(x: SparseTensor, mask) -> SparseTensor:
    """The voxels of x [N, C] that a mask keeps, in their order, as MinkowskiEngine's pruning: [M, C], M may be 0.

    mask bool, int8, uint8 or int32 [N], of any kind. Spatial shape and number of batch elements stay; a shape that was inferred
    is inferred anew. Raises ValueError for anything but a SparseTensor, and for a mask of another length or dtype.
    """
    _check(x, "x")
    tensor = as_tensor(mask, "mask", DTYPES, (x.coordinates.coords.shape[0],))
    index = Checked(functional.flatnonzero(tensor), "int32")
    coords = functional.gather_rows(x.coordinates.coords, index)
    return x.moved_to(functional.gather_rows(x.feats, index), replace(x.coordinates, coords=coords, maps={}))


def intersection(x: SparseTensor, coordinates: SparseTensor | CoordinateSet) -> SparseTensor:
    """The voxels of x [N, C] that `coordinates` has too, in the order of x: [M, C].

    `coordinates`: a SparseTensor or its `coordinates`. Raises ValueError for anything else, for other axes, and for the first
    of its rows that repeats another.
    """
    _check(x, "x")
    other = coordinates.coordinates if isinstance(coordinates, SparseTensor) else coordinates
    if not isinstance(other, CoordinateSet):
        raise ValueError(f"coordinates: expected a SparseTensor or its coordinates, given {describe(coordinates)}")
    if other.dimensions != x.coordinates.dimensions:
        raise ValueError(f"coordinates: expected {x.coordinates.dimensions} axes, given {other.dimensions}")
    found = functional.lookup(other.coords, x.coordinates.coords)
    return prune(x, np.from_dlpack(found) >= 0)


def sparse_cat(*tensors: SparseTensor) -> SparseTensor:
    """Features side by side on the union of the voxels, which ascend in (batch, axes...), zeros where a tensor has none.

    [N1, C1], [N2, C2], ... -> [M, C1 + C2 + ...], of the kind of the first. Raises ValueError for no tensor, where dtypes, axes
    or given spatial shapes differ, and for the first row of a tensor that repeats another of it.
    """
    if not tensors:
        raise ValueError("tensors: expected at least one SparseTensor, given none")
    first = tensors[0]
    for i, x in enumerate(tensors):
        _check(x, f"tensors[{i}]")
        for name, mine, theirs in (
            ("dtype", dtype_of(first.feats), dtype_of(x.feats)),
            ("axes", first.coordinates.dimensions, x.coordinates.dimensions),
            ("spatial_shape", first.coordinates.spatial_shape, x.coordinates.spatial_shape),
        ):
            if mine != theirs:
                raise ValueError(f"tensors: expected equal {name}, given {mine} and {theirs}")
    sets = [np.from_dlpack(x.coordinates.coords) for x in tensors]
    offsets = np.cumsum([0, *map(len, sets)]).astype("int32")
    coords, _, rows = functional.union(np.concatenate(sets), offsets)
    parts = [functional.gather_rows(x.feats, index) for x, index in zip(tensors, rows, strict=True)]
    parts = [as_kind(as_tensor(part, "feats", FLOATS, (None, None)), "numpy") for part in parts]
    feats = as_kind(as_tensor(np.concatenate(parts, axis=1), "feats", FLOATS, (None, None)), first._kind)
    batch_size = max(x.batch_size for x in tensors)
    coords = as_tensor(coords, "coords", ("int32",), (None, 4))
    return first.moved_to(feats, replace(first.coordinates, coords=coords, batch_size=batch_size, maps={}))


def _check(x, argument: str) -> None:
    if not isinstance(x, SparseTensor):
        raise ValueError(f"{argument}: expected a SparseTensor, given {describe(x)}")
