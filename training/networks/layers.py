"""Layers that the sparse networks share: submanifold convolutions by our own ops, attention, positions.

A convolution is a module with `forward(x, sites)` and `of_upsampled(x, sites)`. `Convolution` makes one of input channels,
output channels and taps along an axis; networks take another in its place, as the references of tests and benchmarks do.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3d_tvm.models.sparse_blocks import LONGEST_PERIOD
from training.networks.sites import OPS, Sites

NORM_EPS, FINAL_NORM_EPS = 1e-6, 1e-5
Convolution = Callable[[int, int, int], nn.Module]


class SubmanifoldConvolution(nn.Module):
    """A convolution of 1 or 3^3 taps whose results lie on the voxels of its input.

    Its gradients are those of `sparse_ops.torch`. weight [out_channels, k, k, k, channels], of unit gain for normal features;
    that of a single tap is read as spconv reads it, its memory as a row-major matrix [channels, out_channels].
    """

    def __init__(self, channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        if kernel_size not in (1, 3):
            raise ValueError(f"kernel_size: expected 1 or 3, given {kernel_size!r}")
        taps = kernel_size**3
        self.weight = nn.Parameter(torch.randn(out_channels, *[kernel_size] * 3, channels) / math.sqrt(taps * channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x [N, channels] -> [N, out_channels]."""
        if self.weight.shape[1] == 1:
            return torch.addmm(self.bias, x, self.weight.view(x.shape[1], -1))
        return OPS.sparse_conv(x, self.weight, *sites.map, sites.coords, bias=self.bias)

    def of_upsampled(self, x: Tensor, sites: Sites) -> Tensor:
        """x [M, channels], sites of 8 M rows -> [8 M, out_channels], as if every row of x had been repeated eight times."""
        if self.weight.shape[1] == 1:
            return OPS.gather_rows(self(x, sites), sites.octet)
        return OPS.upsampled_conv(x, self.weight, *sites.map, sites.octet, bias=self.bias)


class Conv(nn.Module):
    """A convolution under the name `conv`, as checkpoints nest it."""

    def __init__(
        self, channels: int, out_channels: int, kernel_size: int = 3, convolution: Convolution = SubmanifoldConvolution
    ):
        super().__init__()
        self.conv = convolution(channels, out_channels, kernel_size)

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x [N, channels] -> [N, out_channels]."""
        return self.conv(x, sites)

    def of_upsampled(self, x: Tensor, sites: Sites) -> Tensor:
        """x [M, channels], sites of 8 M rows -> [8 M, out_channels]."""
        return self.conv.of_upsampled(x, sites)


def attention(q: Iterable[Tensor], k: Iterable[Tensor], v: Iterable[Tensor]) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of every batch element, whose rows [N, H, D] are put together again as [N, H * D]."""
    elements = []
    for parts in zip(q, k, v, strict=True):
        q_, k_, v_ = (part.transpose(0, 1)[None] for part in parts)  # each [1, H, N, D]
        elements.append(F.scaled_dot_product_attention(q_, k_, v_)[0].transpose(0, 1).flatten(1))
    return torch.cat(elements)


def positions(coords: Tensor, channels: int) -> Tensor:
    """coords int32 [N, 4] -> [N, channels]: for each of x, y, z the sines of channels // 6 frequencies, then the cosines; zeros
    fill up the end."""
    count = channels // 6
    frequencies = 1 / LONGEST_PERIOD ** (torch.arange(count, dtype=torch.float32) / max(count, 1))
    angles = coords[:, 1:, None].float() * frequencies  # [N, 3, count]
    waves = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
    return F.pad(waves, (0, channels - waves.shape[1]))
