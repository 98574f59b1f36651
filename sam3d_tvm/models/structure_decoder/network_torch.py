"""The sparse-structure decoder, a residual convolutional network on a grid, as a PyTorch module to import.

Parameters carry the names of upstream's checkpoints.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from sam3d_tvm.models.example_torch import Example, seeded
from sam3d_tvm.models.structure_decoder.config import UPSCALE, StructureDecoderConfig, preset
from sam3d_tvm.models.structure_decoder.run import StructureDecoder


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, X, Y, Z]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def conv(in_channels: int, out_channels: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, out_channels, 3, padding=1)


class ResBlock(nn.Module):
    """x + two times (norm, SiLU, convolution)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = ChannelLayerNorm(channels), ChannelLayerNorm(channels)
        self.conv1, self.conv2 = conv(channels, channels), conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Upsample(nn.Module):
    """Convolution, then pixel shuffle: eight channels become the eight cells of one channel, z fastest."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = conv(in_channels, out_channels * UPSCALE**3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x)
        batch, channels, *size = h.shape
        h = h.reshape(batch, channels // UPSCALE**3, *[UPSCALE] * 3, *size)
        h = h.permute(0, 1, 5, 2, 6, 3, 7, 4)  # [B, C, X, 2, Y, 2, Z, 2]
        return h.reshape(batch, -1, *(UPSCALE * n for n in size))


class StructureDecoderModel(nn.Module):
    """Tokens [B, R^3, C] of the shape latent, or its grid [B, C, R, R, R], to logits [B, 1, G, G, G] of occupancy."""

    def __init__(self, config: StructureDecoderConfig):
        super().__init__()
        self.config = config
        widths = config.channels
        self.input_layer = conv(config.latent_channels, widths[0])
        self.middle_block = nn.Sequential(*(ResBlock(widths[0]) for _ in range(config.num_res_blocks_middle)))
        self.blocks = nn.ModuleList()
        for width, finer in zip(widths, (*widths[1:], None), strict=True):
            self.blocks.extend(ResBlock(width) for _ in range(config.num_res_blocks))
            if finer is not None:
                self.blocks.append(Upsample(width, finer))
        self.out_layer = nn.Sequential(ChannelLayerNorm(widths[-1]), nn.SiLU(), conv(widths[-1], 1))

    def forward(self, shape_latent: torch.Tensor) -> torch.Tensor:
        *_, (_, logits) = self._steps(shape_latent)
        return logits

    def taps(self, shape_latent: torch.Tensor) -> dict[str, torch.Tensor]:
        """What every part of the network returns, by its name; `logits` is the last."""
        return dict(self._steps(shape_latent))

    def _steps(self, shape_latent: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        h = shape_latent
        if h.ndim == 3:
            h = h.transpose(1, 2).unflatten(2, [self.config.resolution] * 3)
        yield "input_layer", (h := self.input_layer(h))
        yield "middle_block", (h := self.middle_block(h))
        for i, block in enumerate(self.blocks):
            yield f"block{i}", (h := block(h))
        yield "logits", self.out_layer(h)


def example(size: str, seed: int = 0) -> Example:
    """One object of the preset `size`, "tiny" or "full"."""
    config = preset(size)
    module = seeded(lambda: StructureDecoderModel(config), seed)
    random = torch.Generator().manual_seed(seed)
    latent = torch.randn(1, config.tokens, config.latent_channels, generator=random)

    def run(component):
        decoder = StructureDecoder(component, config)
        return lambda: {"logits": decoder.logits(latent)}

    return Example(module, {"forward": (latent,)}, lambda: {"logits": module(latent)}, run)
