"""Fewer voxels: pruning by a mask, and intersection."""

from tir_kernels.spec.flatnonzero import DTYPES

from . import functional
from .arrays import Checked, as_kind, as_tensor, describe
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
    return x.moved_to(functional.gather_rows(x.feats, index), x.coordinates.at(coords))


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
    found = functional.lookup(other.coords, x.coordinates.coords, index=other.index)
    return prune(x, as_kind(found, "numpy") >= 0)


def _check(x, argument: str) -> None:
    if not isinstance(x, SparseTensor):
        raise ValueError(f"{argument}: expected a SparseTensor, given {describe(x)}")
