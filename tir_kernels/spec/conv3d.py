"""Dense convolution in three dimensions.

out[b, o, p] = act(bias[o] + residual[b, o, p] + sum over channels c, taps t of
                   weight[o, c, t] * x[b, c, stride * p + dilation * t - padding])

Outside of its size x is zero, or, padded by replicating, its nearest voxel along each axis.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .activation import ACTIVATIONS
from .geometry import Geometry

PADDING_MODES = {"zeros": "constant", "replicate": "edge"}  # what lies outside of x, by torch's names: those of numpy


def naive(
    x,
    weight,
    bias=None,
    residual=None,
    stride=(1, 1, 1),
    padding=(0, 0, 0),
    dilation=(1, 1, 1),
    padding_mode="zeros",
    activation="none",
):
    """Oracle, in float64. x [B, Cin, D, H, W], weight [Cout, Cin, kd, kh, kw], bias [Cout] -> [B, Cout, D', H', W']."""
    around = [(0, 0), (0, 0), *((p, p) for p in padding)]
    x = np.pad(x.astype(np.float64), around, PADDING_MODES[padding_mode])
    size = out_size(x.shape[2:], Geometry(weight.shape[2:], stride, (0, 0, 0), dilation))
    out = np.zeros((len(x), len(weight), *size))
    for tap in np.ndindex(*weight.shape[2:]):
        first = np.multiply(dilation, tap)
        places = tuple(slice(f, f + s * n, s) for f, s, n in zip(first, stride, size, strict=True))
        one = weight[(..., *tap)].astype(np.float64)
        out += np.einsum("bcxyz,oc->boxyz", x[(..., *places)], one, optimize=True)
    if bias is not None:
        out += bias.astype(np.float64)[:, None, None, None]
    if residual is not None:
        out += residual.astype(np.float64)
    return ACTIVATIONS[activation](out)


def reach(geometry: Geometry) -> tuple[int, ...]:
    """How many voxels the kernel covers along each axis."""
    return tuple(step * (k - 1) + 1 for k, step in zip(geometry.kernel, geometry.dilation, strict=True))


def out_size(size, geometry: Geometry) -> tuple:
    """(D', H', W') of an input of `size` (D, H, W), ints or TIR expressions; below 1 where the kernel does not fit in."""
    axes = zip(size, geometry.padding, reach(geometry), geometry.stride, strict=True)
    return tuple((n + 2 * pad - covered) // step + 1 for n, pad, covered, step in axes)


@dataclass(frozen=True)
class Conv3d(Spec):
    """(x, weight, bias, [residual,] out), for any batch B and size D, H, W.

    x `dtype` [B, cin, D, H, W]; weight `dtype` [cout, cin, *geometry.kernel], packed; bias float32 [cout]; residual, out
    `dtype` [B, cout, D', H', W']; `size_out`: (D', H', W'), None where only the running kernel will know; `activation`: one of
    `ACTIVATIONS`; `padding_mode`: one of `PADDING_MODES`; `products`: "float", or "tf32" as in `Linear`. Sums are float32.
    Raises ValueError when the kernel is larger than the padded input, and where there is no edge to replicate.
    """

    family: ClassVar[str] = "conv3d"
    cin: int
    cout: int
    geometry: Geometry
    size_out: tuple[int | None, int | None, int | None] = (None, None, None)
    dtype: str = "float32"
    has_residual: bool = False
    activation: str = "none"
    padding_mode: str = "zeros"
    products: str = "float"

    @property
    def edges(self) -> tuple[int, ...]:
        """The axes of x, from 2 on, whose edges are replicated."""
        padded = enumerate(self.geometry.padding) if self.padding_mode == "replicate" else ()
        return tuple(axis + 2 for axis, pad in padded if pad)
