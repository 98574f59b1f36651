"""Kernel size, stride, padding and dilation of a convolution, sparse or dense."""

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """Kernel size, stride, padding and dilation of a convolution along x, y, z.

    `output_padding` (transposed only) and `ceil_mode` change only how far the output grid reaches, see `sites.out_extent`.
    """

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 0, 0)
    dilation: tuple[int, int, int] = (1, 1, 1)
    transposed: bool = False
    output_padding: tuple[int, int, int] = (0, 0, 0)
    ceil_mode: bool = False

    @classmethod
    def submanifold(cls, kernel, dilation=(1, 1, 1)) -> "Geometry":
        """Output sites are the input sites: stride 1 and the padding that centres an odd kernel."""
        padding = tuple(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
        return cls(tuple(kernel), padding=padding, dilation=tuple(dilation))

    @property
    def taps(self) -> int:
        return int(np.prod(self.kernel))

    @property
    def reach(self) -> tuple[int, int, int]:
        """How far a tap lies from the centre of a submanifold kernel, along x, y, z."""
        return tuple(k // 2 * d for k, d in zip(self.kernel, self.dilation, strict=True))

    def offsets(self) -> np.ndarray:
        """int [taps, 3]: dilation * k - padding of each tap."""
        taps = np.array(list(itertools.product(*(range(k) for k in self.kernel))))
        return taps * np.array(self.dilation) - np.array(self.padding)
