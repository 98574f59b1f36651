"""The decoders of structured latents in plain PyTorch and spconv: what the compiled ones are compared with.

Written from the facts that come with the golden data; `state_dict` names are those of the checkpoints. Windows of equal length
are attended to together, so that none is padded. Sparse convolutions are those of `slat_reference`, on one thread. There must
be at least one row.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3d_tvm.models.gaussian_decoder import GaussianDecoderConfig
from sam3d_tvm.models.mesh_decoder import MeshDecoderConfig
from sam3d_tvm.models.slat_decoder import SlatDecoderConfig
from tests.sam3d_tvm.slat_reference import FINAL_NORM_EPS, NORM_EPS, Conv, FeedForward, float32, positions, spconv

CHILDREN = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32)] * 3)  # z fastest


class Decoder(nn.Module):
    """The transformer that both begin with; parameters are set by `load_state_dict`."""

    def __init__(self, config: SlatDecoderConfig):
        super().__init__()
        self.config = config
        self.input_layer = nn.Linear(config.latent_channels, config.model_channels)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))

    @classmethod
    def of(cls, config: SlatDecoderConfig, state) -> "Decoder":
        """With the parameters of `state`, arrays by name, of which no second copy is kept."""
        with torch.device("meta"):
            model = cls(config)
        tensors = {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in state.items()}
        model.load_state_dict(tensors, strict=True, assign=True)
        return model.requires_grad_(False)

    def transform(self, coords: Tensor, feats: Tensor) -> Tensor:
        """coords int32 [N, 4], feats [N, latent_channels] -> [N, model_channels]."""
        window = self.config.window_size
        partitions = [Windows(coords, window, shift) for shift in (0, window // 2)]
        h = self.input_layer(feats) + positions(coords, self.config.model_channels)
        for i, block in enumerate(self.blocks):
            h = block(h, partitions[i % 2])
        return h


class GaussianReference(Decoder):
    """`forward(coords, feats)` is the raw features [N, out_channels]."""

    def __init__(self, config: GaussianDecoderConfig):
        super().__init__(config)
        self.out_layer = nn.Linear(config.model_channels, config.out_channels)

    @torch.inference_mode()
    def forward(self, coords: Tensor, feats: Tensor) -> Tensor:
        h = self.transform(coords, feats)
        return self.out_layer(F.layer_norm(h, h.shape[1:], eps=FINAL_NORM_EPS))


class MeshReference(Decoder):
    """`forward(coords, feats)` is the features [64 N, out_channels] and the coordinates int32 [64 N, 4]."""

    def __init__(self, config: MeshDecoderConfig):
        super().__init__(config)
        self.upsample = nn.ModuleList(SubdivideBlock(*pair, config.num_groups) for pair in pairwise(config.widths))
        self.out_layer = nn.Linear(config.widths[-1], config.out_channels)

    @torch.inference_mode()
    def forward(self, coords: Tensor, feats: Tensor) -> tuple[Tensor, Tensor]:
        extent, h = self.config.resolution, self.transform(coords, feats)
        for block in self.upsample:
            extent *= 2
            offsets = F.pad(CHILDREN, (1, 0))
            coords = (coords[:, None] * torch.tensor([1, 2, 2, 2], dtype=torch.int32) + offsets).flatten(0, 1)
            h = block(h, coords, extent)
        return self.out_layer(h), coords


class Windows:
    """The rows of every window, windows of one length together: for each length int64 [windows, length]."""

    def __init__(self, coords: Tensor, window: int, shift: int):
        cells = coords.long()
        cells[:, 1:] = (cells[:, 1:] + shift) // window
        _, index, lengths = torch.unique(cells, dim=0, return_inverse=True, return_counts=True)
        order, starts = index.argsort(stable=True), lengths.cumsum(0) - lengths
        self.groups = [order[starts[lengths == length][:, None] + torch.arange(length)] for length in lengths.unique().tolist()]


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
        x = x + self.attn(self.norm1(x), windows)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        qkv = self.to_qkv(x).view(len(x), 3, self.heads, -1)
        h = qkv.new_empty(x.shape)
        for rows in windows.groups:
            q, k, v = qkv[rows].permute(2, 0, 3, 1, 4)  # each [windows, heads, length, head_dim]
            h[rows] = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out(h)


class GroupNorm(nn.GroupNorm):
    """Over the rows of every batch element, one after the other."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        parts = [part for part in x.split(index.bincount().tolist()) if len(part)]
        return torch.cat([super(GroupNorm, self).forward(part.T[None])[0].T for part in parts])


class Skip(nn.Module):
    """A convolution of one tap under the name `conv`, as spconv reads its weight."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = spconv.SubMConv3d(channels, out_channels, 1)
        self.conv.train()  # in eval mode spconv refuses a bias on a CPU

    def forward(self, x: Tensor, sites: spconv.SparseConvTensor) -> Tensor:
        given = spconv.SparseConvTensor(x.float(), sites.indices, sites.spatial_shape, sites.batch_size)
        with float32():
            return self.conv(given).features


class SubdivideBlock(nn.Module):
    """Group norm and SiLU, then every row eight times, then convolution, group norm, SiLU, convolution, and a skip."""

    def __init__(self, channels: int, out_channels: int, num_groups: int):
        super().__init__()
        self.act_layers = nn.ModuleList([GroupNorm(num_groups, channels), nn.SiLU()])
        first, last = Conv(channels, out_channels), Conv(out_channels, out_channels)
        self.out_layers = nn.ModuleList([first, GroupNorm(num_groups, out_channels), nn.SiLU(), last])
        self.skip_connection = Skip(channels, out_channels) if channels != out_channels else None

    def forward(self, x: Tensor, coords: Tensor, extent: int) -> Tensor:
        """x [N, channels], coords int32 [8 N, 4] of the children -> [8 N, out_channels]."""
        index = coords[:, 0].long()
        sites = spconv.SparseConvTensor(torch.zeros(len(coords), 1), coords, [extent] * 3, int(index.amax()) + 1)
        h = F.silu(self.act_layers[0](x, index[::8])).repeat_interleave(8, 0)
        h = self.out_layers[0](h, sites)
        h = F.silu(self.out_layers[1](h, index))
        skip = x.repeat_interleave(8, 0)
        return self.out_layers[3](h, sites) + (skip if self.skip_connection is None else self.skip_connection(skip, sites))
