"""Dense transposed convolution in three dimensions: what the gradient of a convolution with respect to its input computes.

out[b, o, stride * q + dilation * t - padding] sums weight[c, o, t] * x[b, c, q] over channels c, taps t and voxels q of x, and

out[b, o, p] = act(bias[o] + residual[b, o, p] + that sum)

Along an axis, the outputs p with the same phase r = (p + padding) mod stride are a convolution of unit stride: with
p = stride * m + r - padding, a tap for which dilation * t = stride * e + r meets the voxel m - e. Phases that meet the same
steps e read the same voxels, and are one convolution with more channels (`Group`). With a kernel as large as its stride all
are one, of a single tap.
"""

import itertools
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import ClassVar

import numpy as np

from . import Spec
from .activation import ACTIVATIONS
from .geometry import Geometry


def naive(
    x,
    weight,
    bias=None,
    residual=None,
    stride=(1, 1, 1),
    padding=(0, 0, 0),
    output_padding=(0, 0, 0),
    dilation=(1, 1, 1),
    activation="none",
):
    """Oracle, in float64. x [B, Cin, D, H, W], weight [Cin, Cout, kd, kh, kw], bias [Cout] -> [B, Cout, D', H', W']."""
    geometry = Geometry(weight.shape[2:], stride, padding, dilation, True, output_padding)
    size, size_out = x.shape[2:], out_size(x.shape[2:], geometry)
    whole = np.zeros((len(x), weight.shape[1], *(n + 2 * pad for n, pad in zip(size_out, padding, strict=True))))
    for tap in np.ndindex(*weight.shape[2:]):
        first = np.multiply(dilation, tap)
        places = tuple(slice(f, f + s * n, s) for f, s, n in zip(first, stride, size, strict=True))
        one = weight[(..., *tap)].astype(np.float64)
        whole[(..., *places)] += np.einsum("bcxyz,co->boxyz", x.astype(np.float64), one, optimize=True)
    out = whole[(..., *(slice(pad, pad + n) for pad, n in zip(padding, size_out, strict=True)))]
    if bias is not None:
        out = out + bias.astype(np.float64)[:, None, None, None]
    if residual is not None:
        out = out + residual.astype(np.float64)
    return ACTIVATIONS[activation](out)


def out_size(size, geometry: Geometry) -> tuple:
    """(D', H', W') of an input of `size` (D, H, W), ints or TIR expressions; below 1 where padding leaves nothing."""
    g = geometry
    axes = zip(size, g.kernel, g.stride, g.padding, g.dilation, g.output_padding, strict=True)
    return tuple((n - 1) * s - 2 * pad + d * (k - 1) + more + 1 for n, k, s, pad, d, more in axes)


@dataclass(frozen=True)
class Group:
    """Phases that read the same voxels: `phases` (rd, rh, rw), and `steps` (ed, eh, ew) before their place, where these lie.
    taps[phase][step]: the tap of the kernel, in row-major order, that is multiplied there."""

    phases: tuple[tuple[int, int, int], ...]
    taps: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Axis:
    """Along an axis: what is added to x in front (`before`) and behind (`after`); the place m of the first output, and how many
    more places there are than voxels (`more`). A step e of place m - first is voxel m - first + shift - e of the padded x."""

    before: int
    after: int
    first: int
    more: int
    shift: int


def axes_of(geometry: Geometry) -> tuple[Axis, Axis, Axis]:
    """See `Axis`."""

    def along(k, s, pad, d, more):
        first, reach = pad // s, d * (k - 1)
        before = max(0, reach // s - first)
        behind = (reach + more - pad) // s  # the last place, counted from the last voxel
        return Axis(before, max(0, behind), first, behind - first, first + before)

    g = geometry
    return tuple(map(along, g.kernel, g.stride, g.padding, g.dilation, g.output_padding))


@cache
def groups_of(geometry: Geometry) -> tuple[Group, ...]:
    """All phases, each in one group."""
    by_axis = []
    for k, s, d in zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True):
        by_axis.append([[(d * t // s, t) for t in range(k) if d * t % s == r] for r in range(s)])
    _, kernel_h, kernel_w = geometry.kernel
    found: dict[tuple, list] = {}
    for phase in itertools.product(*(range(s) for s in geometry.stride)):
        met = list(itertools.product(*(axis[r] for axis, r in zip(by_axis, phase, strict=True))))
        steps = tuple(tuple(e for e, _ in of_axes) for of_axes in met)
        taps = tuple((d[1] * kernel_h + h[1]) * kernel_w + w[1] for d, h, w in met)
        found.setdefault(steps, []).append((phase, taps))
    return tuple(Group(*zip(*members, strict=True), steps=steps) for steps, members in found.items())


@dataclass(frozen=True)
class ConvTranspose3d(Spec):
    """(x, weight, bias, [residual,] out), for any batch B and size D, H, W.

    x `dtype` [B, cin, D, H, W]; weight `dtype` [cin, cout, *geometry.kernel], packed; bias float32 [cout]; residual, out
    `dtype` [B, cout, D', H', W']; `activation`: one of `ACTIVATIONS`; `products`: "float", or "tf32" as in `Linear`. Sums are
    float32. Raises ValueError when x has no voxel along an axis, or padding leaves no output.
    """

    family: ClassVar[str] = "conv_transpose3d"
    cin: int
    cout: int
    geometry: Geometry
    dtype: str = "float32"
    has_residual: bool = False
    activation: str = "none"
    products: str = "float"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.cin, self.cout, *self.geometry.kernel)

    @property
    def phases(self) -> int:
        return prod(self.geometry.stride)
