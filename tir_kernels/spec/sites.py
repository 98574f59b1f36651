"""Output sites of strided and transposed sparse convolutions, in spconv's order.

A site is active when any tap meets an active input (strided), or is any input's image under any tap (transposed). Rows are
grouped by batch element, ascending; within one they come in order of first touch: taps outside, the last axis fastest,
input rows inside. That is the order of spconv's CPU code, which golden data of one batch element records.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .geometry import Geometry


def out_extent(shape, geometry: Geometry) -> tuple[int, ...]:
    """Extent of the output grid along each axis, as spconv computes it, with PyTorch's output padding and ceil mode.

    Strided: floor((n + 2p - d(k - 1) - 1) / s) + 1; in ceil mode the quotient is rounded up, but the last window starts inside
    of the input or of the padding before it. Transposed: (n - 1) s - 2p + k + output padding, without the dilation.
    """
    return tuple(extent_along(n, geometry, axis) for axis, n in enumerate(shape))


def extent_along(n, geometry: Geometry, axis: int, least: Callable = min):
    """`out_extent` along one axis: of an int, or of a TIR expression, with the `least` of two of these."""
    k, s, p, d = (getattr(geometry, field)[axis] for field in ("kernel", "stride", "padding", "dilation"))
    if geometry.transposed:
        return (n - 1) * s + (k - 2 * p + geometry.output_padding[axis])
    last = n + (2 * p - d * (k - 1) - 1)  # where the window starts that ends at the end of the padded input
    return (least(last + (s - 1), n + (p - 1)) if geometry.ceil_mode else last) // s + 1


def most_sites(geometry: Geometry) -> int:
    """The largest number of sites that one input can touch."""
    if geometry.transposed:
        return geometry.taps
    most = 1
    for k, s, d in zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True):
        most *= max(Counter(d * tap % s for tap in range(k)).values())
    return most


def touched_once(geometry: Geometry) -> bool:
    """Whether no two inputs touch one site: those of a transposed convolution whose taps all fall between two inputs."""
    axes = zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True)
    return geometry.transposed and all(len({d * tap % s for tap in range(k)}) == k for k, s, d in axes)


def naive(coords, geometry: Geometry, extent=None):
    """Oracle. coords int32 [N, 4] -> sites int32 [M, 4]; `extent`: keep sites within [0, extent), None: keep all."""
    sites = {}
    for tap in geometry.offsets():
        for row in np.asarray(coords).tolist():
            if geometry.transposed:
                site = np.array(row[1:]) * geometry.stride + tap
            else:
                site, rest = np.divmod(np.array(row[1:]) - tap, geometry.stride)
                if rest.any():
                    continue
            if extent is None or ((site >= 0) & (site < extent)).all():
                sites[(row[0], *site.tolist())] = None
    return np.array(sorted(sites, key=lambda site: site[0]), "int32").reshape(-1, 4)


@dataclass(frozen=True)
class PlanSites(Spec):
    """(coords int32 [N, 4], extents, plan int64 [PLAN_SIZE], size int64 [3]): the box of the sites, and scratch sizes.

    `shape`: "given" where the extents of the input grid are three int64 arguments, else there are none: "infer" for one more
    than the largest coordinate along each axis (upstream's rule), or None for an unbounded lattice. In the first two cases
    coordinates must not be negative, and sites outside of [0, `out_extent`) are dropped. size = (slots, keys, rows of the
    list). Raises ValueError for the first row outside, and where the scratch does not fit into memory.
    """

    family: ClassVar[str] = "plan_sites"
    geometry: Geometry
    shape: str | None
    method: str = "auto"


@dataclass(frozen=True)
class FindSites(Spec):
    """(coords, plan, slots int32 [S], keys int64 [T], list int32 [L, 4], count int64 [1]): sites in order of first touch."""

    family: ClassVar[str] = "find_sites"
    geometry: Geometry


@dataclass(frozen=True)
class CopySites(Spec):
    """(list int32 [L, 4], plan, out int32 [M, 4]): the first M rows of the list, grouped by batch element."""

    family: ClassVar[str] = "copy_sites"
