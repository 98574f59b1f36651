"""Kernel maps: which input row meets which output row at each tap of a sparse convolution.

The law, for every tap k of every map:  coordinate_in = stride * coordinate_out + dilation * k - padding.

As a *neighbour table*, int32 [taps, M], a map holds the input row of every (tap, output row), or -1; the oracles make that.
Taps are numbered with the last axis fastest. What kernels read is up to the target: see `layout.MapLayout`.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .geometry import Geometry


def naive_table(coords_in, coords_out, geometry: Geometry) -> np.ndarray:
    """Oracle of the law. coords_in [N, 4], coords_out [M, 4] -> int32 [taps, M]."""
    rows = {tuple(c): row for row, c in enumerate(np.asarray(coords_in).tolist())}
    table = np.full((geometry.taps, len(coords_out)), -1, "int32")
    stride = np.array(geometry.stride)
    for tap, offset in enumerate(geometry.offsets()):
        for o, site in enumerate(np.asarray(coords_out)):
            if geometry.transposed:  # the same law with the roles exchanged: out = stride * in + offset
                source, rest = np.divmod(site[1:] - offset, stride)
                if rest.any():
                    continue
            else:
                source = site[1:] * stride + offset
            table[tap, o] = rows.get((int(site[0]), *map(int, source)), -1)
    return table


def naive_inverse(table: np.ndarray, rows: int) -> np.ndarray:
    """Oracle. table [taps, M] of `rows` inputs -> int32 [taps, rows]: the same triples with input and output exchanged."""
    inverse = np.full((len(table), rows), -1, "int32")
    for tap, sources in enumerate(table):
        inverse[tap, sources[sources >= 0]] = np.flatnonzero(sources >= 0)
    return inverse


@dataclass(frozen=True)
class SubmanifoldMap(Spec):
    """(coords int32 [N, 4], plan, slots, keys, the map's arrays) of a submanifold convolution.

    The index is that of coords.
    """

    family: ClassVar[str] = "submanifold_map"
    geometry: Geometry


@dataclass(frozen=True)
class ProbeMap(Spec):
    """(coords_out int32 [M, 4], plan, slots, keys, the map's arrays): any map, by the law.

    The index is that of the input coordinates. `chosen`: the caller chose the output coordinates, and the slots of their own
    index, int32 [S], come before the map's arrays: they are not read, but only distinct rows have them.

    For a transposed convolution the law holds with the roles exchanged, coordinate_out = stride * coordinate_in + dilation * k
    - padding, and a tap counts where the division is exact.
    """

    family: ClassVar[str] = "probe_map"
    geometry: Geometry
    chosen: bool = False


@dataclass(frozen=True)
class InverseMap(Spec):
    """(a map's arrays, coords int32 [N, 4], the arrays of the inverse map): input and output of all triples exchanged.

    Of `coords`, the coordinates that the given map reads from, only the number of rows matters. Raises ValueError when the
    map was built for another number of rows.
    """

    family: ClassVar[str] = "inverse_map"
