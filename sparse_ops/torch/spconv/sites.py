"""Voxels and the kernel maps that were built on them, found again by the identity of the `indices` tensor.

All tensors on the same `indices` share what was built, also those that a user puts together by hand. What is kept lives as
long as a tensor on these voxels, or an entry of an `indice_dict` that names them.
"""

import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensor

from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.sites import out_extent

from ...devices import place
from ...eager.arrays import as_tensor
from ...eager.call import CoordinateIndex
from ...eager.checksum import checksum
from ...op.index import fitting_extent
from ...op.numbers import as_int, shown
from ...op.signature import MAP_DTYPES
from ..ops import CALLS

MOST_AXES = 3

Size = int | torch.SymInt


def as_size(argument: str, value) -> Size:
    """An extent or a batch size: an int of any kind, a 0-dim tensor, or a number that only the run knows."""
    if isinstance(value, torch.SymInt):
        return value
    if isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_floating_point():
        return value.item()  # a SymInt while torch.export traces
    number = as_int(value)
    if number is None:
        raise ValueError(f"{argument}: expected an int, given {shown(value)}")
    return number


def as_sizes(argument: str, values, count: int) -> list[Size]:
    """`count` extents, of a list, a tuple, a torch.Size or an array; a list of ints is returned as it is."""
    if type(values) is list and len(values) == count and all(type(value) is int for value in values):
        return values
    try:
        sizes = [as_size(argument, value) for value in values]
    except TypeError:
        sizes = []
    if len(sizes) != count:
        raise ValueError(f"{argument}: expected {count} extents, one for each axis of indices, given {shown(values)}")
    return sizes


def surely_differ(given, expected) -> bool:
    """Whether two sizes, or two lists of them, differ for certain: what only the run knows is equal to anything."""
    if given is expected:
        return False
    if isinstance(given, list | tuple):
        return len(given) != len(expected) or any(map(surely_differ, given, expected))
    return isinstance(given, int) and isinstance(expected, int) and given != expected


def widen(values, fill: int) -> list:
    """Values along the axes as three, on leading unit axes."""
    return [fill] * (MOST_AXES - len(values)) + list(values)


def _here() -> tuple[str, int] | None:
    """For what maps are built: the place where calls run, None where none does."""
    return None if torch.compiler.is_compiling() else place()


class Built:
    """A kernel map, and the voxels on its output side; None where these are those of the input.

    `op`, `given`, `options`: the call whose last four results are its tensors, for the place where it runs: devices read other
    arrays than CPUs. `arrays`: what it returned here, if it was called already.
    """

    def __init__(self, op: str, given: tuple, options: dict, target: "Sites | None" = None, arrays=None):
        self._call, self.target = (op, given, options), target
        self._arrays = {} if arrays is None else {_here(): tuple(arrays)}
        self._inverse: dict[object, tuple[torch.Tensor, ...]] = {}

    @property
    def arrays(self) -> tuple[torch.Tensor, ...]:
        """The four tensors, for the place where calls run."""
        here = _here()
        if here not in self._arrays:
            op, given, options = self._call
            self._arrays[here] = tuple(CALLS[op](*given, **options)[-len(MAP_DTYPES) :])
        return self._arrays[here]

    def inverse(self, source: "Sites") -> tuple[torch.Tensor, ...]:
        """The map back to `source`, on which this one was built."""
        here = _here()
        if here not in self._inverse:
            self._inverse[here] = tuple(CALLS["inverse_map"](*self.arrays, source.coords))
        return self._inverse[here]


class Sites:
    """Voxels: `indices` int32 [N, 1 + axes], the maps built on them, and the index that these share."""

    def __init__(self, indices: torch.Tensor, coords: torch.Tensor | None = None):
        self.indices = indices
        self._held = _holds(indices)
        self._coords = coords
        self._maps: dict[object, Built] = {}
        self._index = CoordinateIndex()

    def __getstate__(self) -> dict:
        return {"indices": self.indices}  # maps are built again

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["indices"])

    @property
    def changed(self) -> bool:
        """Whether somebody wrote into `indices` since."""
        return self._held != _holds(self.indices)

    @property
    def coords(self) -> torch.Tensor:
        """int32 [N, 4], with leading unit axes."""
        if self._coords is None:
            self._coords = wide_coords(self.indices)
        return self._coords

    def submanifold(self, geometry: Geometry) -> Built:
        if geometry not in self._maps:
            given = self.coords, geometry.kernel, geometry.dilation
            self._maps.setdefault(geometry, Built("submanifold_map", given, {"index": self._index}))
        return self._maps[geometry]

    def strided(self, geometry: Geometry, spatial_shape: list[Size]) -> tuple[Built, "Sites", list[Size]]:
        """The map of a strided or transposed geometry on a grid of `spatial_shape`, the voxels behind it, and their grid.

        ValueError for a kernel that the grid has no room for.
        """
        axes = len(spatial_shape)
        shape = widen(spatial_shape, 1)
        if all(isinstance(n, int) for n in shape):
            behind = fitting_extent("", tuple(shape), geometry, axes)
        else:
            behind = out_extent(shape, geometry)[MOST_AXES - axes :]
        key = (geometry, *map(str, shape))
        built = self._maps.get(key)
        if built is not None and not built.target.changed:
            return built, built.target.again(), list(behind)
        given = (
            self.coords,
            geometry.kernel,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            shape,
            geometry.transposed,
        )
        options = {"output_padding": geometry.output_padding, "index": self._index}
        coords, *arrays = CALLS["strided_map"](*given, **options)
        target = made_sites(narrow_coords(coords, axes), coords)
        built = self._maps[key] = Built("strided_map", given, options, target, arrays)
        return built, built.target, list(behind)

    def again(self) -> "Sites":
        """The same voxels and maps under `indices` of their own, so that nobody writes into those of another's result."""
        own = made_sites(self.indices.clone(), None if self.coords is self.indices else self.coords)
        own._maps, own._index = self._maps, self._index
        return own


_known: weakref.WeakValueDictionary[int, Sites] = weakref.WeakValueDictionary()  # by the id of indices, which they hold


def sites_of(indices: torch.Tensor) -> Sites:
    """The voxels of an `indices` tensor, as all know them; anew when it was written into."""
    found = _known.get(id(indices))
    return found if found is not None and not found.changed else made_sites(indices)


def made_sites(indices: torch.Tensor, coords: torch.Tensor | None = None) -> Sites:
    sites = _known[id(indices)] = Sites(indices, coords)
    return sites


def wide_coords(indices: torch.Tensor) -> torch.Tensor:
    """int32 [N, 1 + axes] -> [N, 4], zeros along the axes that there are not."""
    missing = MOST_AXES + 1 - indices.shape[1]
    if not missing:
        return indices
    return torch.cat([indices[:, :1], indices.new_zeros((indices.shape[0], missing)), indices[:, 1:]], 1)


def narrow_coords(coords: torch.Tensor, axes: int) -> torch.Tensor:
    """int32 [N, 4] -> [N, 1 + axes]."""
    return coords if axes == MOST_AXES else torch.cat([coords[:, :1], coords[:, MOST_AXES + 1 - axes :]], 1)


def _holds(indices: torch.Tensor):
    """What tells whether a tensor was written into: its version, or, where it has none, a sum over what it holds."""
    if not indices.is_inference():
        return indices._version
    if isinstance(indices, FakeTensor) or torch.compiler.is_compiling():
        return None
    return checksum(as_tensor(indices.contiguous(), "indices", ("int32",), (None, None)), "int32")
