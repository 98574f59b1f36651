"""Voxels as an oracle sees them, and the laws of `tir_kernels.spec` on whole arrays: fast enough for thousands of voxels.

`tests/test_fuzz.py` compares what is here with the `naive` functions of the spec.
"""

from dataclasses import dataclass, replace

import numpy as np

from tir_kernels.spec.coordinate_index import COORDINATE_LIMIT
from tir_kernels.spec.geometry import Geometry

REACH = 1 << 16  # coordinates lie within +-REACH, also those that are only asked for


@dataclass(frozen=True, eq=False)
class Voxels:
    """A coordinate set. Where tensors lie on the same voxels, they have the same `Voxels`.

    coords int32 [N, 4], with leading zeros in fewer than three dimensions; shape: extents along x, y, z, or None where they are
    inferred; unbounded: a lattice without extents; infers: whether each layer infers them anew, as in graphs.
    """

    coords: np.ndarray
    shape: tuple[int, int, int] | None
    batch: int
    dims: int
    unbounded: bool = False
    infers: bool = False

    @classmethod
    def of(cls, coords, shape, batch: int, dims: int, infers: bool = False) -> "Voxels":
        """Voxels as a user gives them."""
        coords = np.ascontiguousarray(coords, "int32").reshape(-1, 4)
        unbounded = shape is None and coords[:, 1:].min(initial=0) < 0
        return cls(coords, shape, batch, dims, bool(unbounded), infers)

    @property
    def rows(self) -> int:
        return len(self.coords)

    @property
    def extent(self) -> tuple[int, int, int] | None:
        """The extents, given or inferred; None on an unbounded lattice. Leading axes of fewer dimensions have 1."""
        if self.unbounded:
            return None
        if self.shape is not None:
            return self.shape
        return (1,) * (3 - self.dims) + tuple(int(n) for n in self.coords[:, 4 - self.dims :].max(0, initial=-1) + 1)

    @property
    def ascends(self) -> bool:
        """Whether the rows of one batch element lie together, and elements ascend."""
        return bool((np.diff(self.coords[:, 0]) >= 0).all())

    def given(self) -> np.ndarray:
        """Coordinates int32 [N, 1 + dims] as a user gives them."""
        return np.ascontiguousarray(self.coords[:, [0, *range(4 - self.dims, 4)]])

    def moved(self, coords, shape=None) -> "Voxels":
        """What a layer leads to; `shape` as far as extents are known there."""
        return replace(self, coords=np.ascontiguousarray(coords, "int32"), shape=None if self.infers else shape)

    def anew(self, coords, shape) -> "Voxels":
        """Voxels that a user makes of coordinates that were computed from these."""
        if self.infers:
            return self.moved(coords)
        return Voxels.of(coords, shape, self.batch, self.dims)


class TooFar(Exception):
    """Coordinates beyond those of any tensor."""


def keys(coords) -> np.ndarray:
    """A number for each (batch, x, y, z), ascending with it: int64 [N]. Raises TooFar."""
    wide = np.asarray(coords, "int64")
    if (np.abs(wide[:, 1:]) >= REACH).any():
        raise TooFar
    key = wide[:, 0]
    for axis in (1, 2, 3):
        key = key * (2 * REACH) + wide[:, axis] + REACH
    return key


def rows_of(coords, queries) -> np.ndarray:
    """The row of each query among coordinates, or -1: int32 [M]."""
    far = (np.abs(np.asarray(queries)[:, 1:]) >= REACH).any(1)
    wanted = keys(np.where(far[:, None], 0, queries))
    if not len(coords):
        return np.full(len(wanted), -1, "int32")
    have = keys(coords)
    order = np.argsort(have, kind="stable")
    place = np.minimum(np.searchsorted(have[order], wanted), len(have) - 1)
    found = order[place]
    return np.where((have[found] == wanted) & ~far, found, -1).astype("int32")


def table(coords_in, coords_out, geometry: Geometry) -> np.ndarray:
    """`kernel_map.naive_table`: the input row that each tap of each output row reads, int32 [taps, M]."""
    places, batch, rows = np.asarray(coords_out, "int64")[:, 1:], np.asarray(coords_out)[:, :1], []
    for offset in geometry.offsets():
        if geometry.transposed:
            source, rest = np.divmod(places - offset, geometry.stride)
        else:
            source, rest = places * geometry.stride + offset, np.zeros((1, 3))
        found = rows_of(coords_in, np.concatenate([batch, source], 1))
        rows.append(np.where(rest.any(1), -1, found))
    return np.stack(rows).astype("int32")


def sites(coords, geometry: Geometry, extent) -> np.ndarray:
    """`sites.naive`: output voxels in order of first touch by batch element, int32 [M, 4]. Raises TooFar."""
    coords, touched = np.asarray(coords, "int64"), [np.zeros((0, 4), "int64")]
    for offset in geometry.offsets():
        if geometry.transposed:
            place, inside = coords[:, 1:] * geometry.stride + offset, np.ones(len(coords), bool)
        else:
            place, rest = np.divmod(coords[:, 1:] - offset, geometry.stride)
            inside = ~rest.any(1)
        if (place[inside] < -COORDINATE_LIMIT).any() or (place[inside] >= COORDINATE_LIMIT).any():
            raise TooFar  # also where they would lie outside of the grid
        if extent is not None:
            inside = inside & ((place >= 0) & (place < extent)).all(1)
        touched.append(np.concatenate([coords[:, :1], place], 1)[inside])
    every = np.concatenate(touched)
    if not len(every):
        return np.zeros((0, 4), "int32")
    _, first = np.unique(keys(every), return_index=True)
    found = every[np.sort(first)]
    return found[np.argsort(found[:, 0], kind="stable")].astype("int32")


def conv(x, weight, neighbours, bias=None, groups: int = 1):
    """A convolution in float64, and how large its sums are: ([M, Cout], [M, Cout]).

    x [N, Cin], weight [Cout, taps, Cin / groups], neighbours int32 [taps, M]. The size is the root of the sum of squares of all
    terms, as large as a sum of terms of either sign comes out; results may be smaller where terms cancel.
    """
    cout, taps, width = weight.shape
    sums = np.zeros((neighbours.shape[1], cout))
    if bias is not None:
        sums += bias.astype("float64")
    squares = sums**2
    x, matrices = x.astype("float64"), weight.astype("float64").reshape(groups, cout // groups, taps, width)
    for tap, rows in enumerate(neighbours):
        hit = np.flatnonzero(rows >= 0)
        columns = x[rows[hit]].reshape(len(hit), groups, width).transpose(1, 0, 2)
        own = matrices[:, :, tap].transpose(0, 2, 1)
        sums[hit] += (columns @ own).transpose(1, 0, 2).reshape(len(hit), cout)
        squares[hit] += (columns**2 @ own**2).transpose(1, 0, 2).reshape(len(hit), cout)
    return sums, np.sqrt(squares)
