"""The part that both decoders of structured latents begin with, in torch: a transformer within shifted windows of voxels.

Windows of equal length are attended to together, so that none is padded.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3d_tvm.models.slat_decoder import SlatDecoderConfig
from sam3d_tvm.models.structure_flow.network_torch import FeedForward
from training.networks.layers import NORM_EPS, positions
from training.networks.sites import Sites


class SlatDecoderNetwork(nn.Module):
    """The transformer, by the names of the checkpoints."""

    def __init__(self, config: SlatDecoderConfig):
        super().__init__()
        self.config = config
        self.input_layer = nn.Linear(config.latent_channels, config.model_channels)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))

    def sites(self, coords: Tensor) -> Sites:
        """Those of coords int32 [N, 4], the rows of a batch element together and ascending by batch; at least one."""
        return Sites(coords, self.config.resolution, int(coords[:, 0].amax()) + 1)

    def transform(self, sites: Sites, feats: Tensor) -> Tensor:
        """feats [N, latent_channels] -> [N, model_channels]."""
        window = self.config.window_size
        partitions = [Windows(sites.coords, window, shift) for shift in (0, window // 2)[: len(self.blocks)]]
        h = self.input_layer(feats) + positions(sites.coords, self.config.model_channels)
        for i, block in enumerate(self.blocks):
            h = block(h, partitions[i % 2])
        return h


class Windows:
    """The rows of every window of `window` voxels along an axis, the first of which begins at -shift.

    groups: for each length int64 [windows, length], the rows of the windows of that length. back: int64 [N], where each row is
    among those of all groups.
    """

    def __init__(self, coords: Tensor, window: int, shift: int):
        cells = coords.long()
        cells[:, 1:] = (cells[:, 1:] + shift) // window
        extent = int(cells[:, 1:].amax()) + 1
        keys = ((cells[:, 0] * extent + cells[:, 1]) * extent + cells[:, 2]) * extent + cells[:, 3]
        _, index, lengths = torch.unique(keys, return_inverse=True, return_counts=True)
        order, starts = index.argsort(stable=True), lengths.cumsum(0) - lengths
        self.groups = [order[starts[lengths == length][:, None] + torch.arange(length)] for length in lengths.unique().tolist()]
        self.back = torch.cat([rows.flatten() for rows in self.groups]).argsort()


class Block(nn.Module):
    """Attention within windows and a feed-forward layer, each with a norm before and a skip."""

    def __init__(self, config: SlatDecoderConfig):
        super().__init__()
        channels = config.model_channels
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS, elementwise_affine=False)
        self.attn = Attention(channels, config.heads)
        self.mlp = FeedForward(channels, config.hidden)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """x [N, C] -> [N, C]."""
        x = x + self.attn(self.norm1(x), windows)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """x [N, C] -> [N, C]."""
        qkv, parts = self.to_qkv(x).view(len(x), 3, self.heads, -1), []
        for rows in windows.groups:
            q, k, v = qkv[rows].permute(2, 0, 3, 1, 4)  # each [windows, heads, length, head_dim]
            parts.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, x.shape[1]))
        return self.to_out(torch.cat(parts)[windows.back])
