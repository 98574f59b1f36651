"""Sizes of grids behind a convolution, and the names of algorithms, of which there is one here."""

import enum

from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.sites import out_extent


class ConvAlgo(enum.Enum):
    """spconv's algorithms. Layers take any of them, and compute the same."""

    Native = 0
    MaskImplicitGemm = 1
    MaskSplitImplicitGemm = 2


def get_conv_output_size(input_size, kernel_size, stride, padding, dilation) -> list:
    """Extents of the grid behind a strided convolution or a pool: floor((n + 2p - d(k - 1) - 1) / s) + 1; 1 for a kernel -1."""
    geometry = Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation))
    extent = out_extent(input_size, geometry)
    return [1 if k == -1 else n for k, n in zip(kernel_size, extent, strict=True)]


def get_deconv_output_size(input_size, kernel_size, stride, padding, dilation, output_padding) -> list:
    """Extents of the grid behind a transposed convolution: (n - 1) s - 2p + k + output padding, without the dilation."""
    if -1 in kernel_size:
        raise ValueError(f"kernel_size: expected sizes of at least 1, given {kernel_size!r}")
    geometry = Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), True, tuple(output_padding))
    return list(out_extent(input_size, geometry))
