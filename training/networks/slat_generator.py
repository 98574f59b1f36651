"""The generator of structured latents in torch: the velocity of noisy latents, by the names of the checkpoint."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3d_tvm.models.slat_generator.config import SlatConfig
from sam3d_tvm.models.structure_flow.network_torch import FeedForward, HeadNorm, TimestepEmbedder
from training.networks.layers import (
    FINAL_NORM_EPS,
    NORM_EPS,
    Conv,
    Convolution,
    SubmanifoldConvolution,
    attention,
    positions,
)
from training.networks.sites import Sites, pooled


class SlatGeneratorNetwork(nn.Module):
    """`forward(coords, x, t, cond)` is the velocity."""

    def __init__(self, config: SlatConfig, convolution: Convolution = SubmanifoldConvolution):
        super().__init__()
        self.config = config
        inner, widths = config.model_channels, config.widths
        self.input_layer = nn.Linear(config.in_channels, widths[0])
        self.t_embedder = TimestepEmbedder(inner)
        self.input_blocks = nn.ModuleList(ResBlock(widths[a], inner, widths[b], convolution) for a, b in config.input_moves)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.out_blocks = nn.ModuleList(ResBlock(2 * widths[a], inner, widths[b], convolution) for a, b in config.out_moves)
        self.out_layer = nn.Linear(widths[0], config.out_channels)

    def forward(self, coords: Tensor, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """coords int32 [N, 4], x [N, in_channels], t [B] times 1000, cond [B, L, cond_channels] -> [N, out_channels].

        The rows of a batch element are together and ascend by batch; it may have none.
        """
        levels, parents = [Sites(coords, self.config.resolution, len(cond))], []
        for _ in range(self.config.levels):
            coarser, parent = levels[-1].downsampled()
            levels.append(coarser)
            parents.append(parent)
        emb = self.t_embedder(t)

        h, skips = self.input_layer(x), []
        for block, (source, target) in zip(self.input_blocks, self.config.input_moves, strict=True):
            if source < target:
                h = pooled(h, parents[source], len(levels[target]))
            h = block(h, emb, levels[target])
            skips.append(h)
        h = h + positions(levels[-1].coords, self.config.model_channels)
        for block in self.blocks:
            h = block(h, emb, cond, levels[-1])
        for block, (source, target) in zip(self.out_blocks, self.config.out_moves, strict=True):
            h = torch.cat([h, skips.pop()], dim=1)
            if source > target:
                h = h[parents[target]]
            h = block(h, emb, levels[target])
        return self.out_layer(F.layer_norm(h, h.shape[1:], eps=FINAL_NORM_EPS))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, modulated norm, SiLU, convolution, and a skip. The resolution changes outside."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, convolution: Convolution):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(out_channels, eps=NORM_EPS, elementwise_affine=False)
        self.conv1 = Conv(channels, out_channels, convolution=convolution)
        self.conv2 = Conv(out_channels, out_channels, convolution=convolution)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.skip_connection = nn.Linear(channels, out_channels) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, sites: Sites) -> Tensor:
        """x [N, channels], emb [B, emb_channels] -> [N, out_channels]."""
        scale, shift = sites.spread(self.emb_layers(emb)).chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)), sites)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift), sites)
        return h + self.skip_connection(x)


class SelfAttention(nn.Module):
    def __init__(self, channels: int, heads: int, qk_rms_norm: bool):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        norms = (HeadNorm(heads, channels // heads) if qk_rms_norm else nn.Identity() for _ in range(2))
        self.q_rms_norm, self.k_rms_norm = norms

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        """x [N, C] -> [N, C]."""
        q, k, v = self.to_qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        q, k, parts = self.q_rms_norm(q), self.k_rms_norm(k), sites.lengths
        return self.to_out(attention(q.split(parts), k.split(parts), v.split(parts)))


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context_channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(context_channels, 2 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, cond: Tensor, sites: Sites) -> Tensor:
        """x [N, C], cond [B, L, context_channels] -> [N, C]."""
        q = self.to_q(x).view(len(x), self.heads, -1)
        k, v = self.to_kv(cond).view(*cond.shape[:2], 2, self.heads, -1).unbind(2)
        return self.to_out(attention(q.split(sites.lengths), k, v))


class Block(nn.Module):
    """Self attention, cross attention and a feed-forward layer, each with a norm before and a skip."""

    def __init__(self, config: SlatConfig):
        super().__init__()
        channels = config.model_channels
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.norm3 = nn.LayerNorm(channels, eps=NORM_EPS, elementwise_affine=False)
        self.self_attn = SelfAttention(channels, config.heads, config.qk_rms_norm)
        self.cross_attn = CrossAttention(channels, config.cond_channels, config.heads)
        self.mlp = FeedForward(channels, config.hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))

    def forward(self, x: Tensor, emb: Tensor, cond: Tensor, sites: Sites) -> Tensor:
        """x [N, C], emb [B, C], cond [B, L, cond_channels] -> [N, C]."""
        modulation = sites.spread(self.adaLN_modulation(emb))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=1)
        x = x + self.self_attn(self.norm1(x) * (1 + scale) + shift, sites) * gate
        x = x + self.cross_attn(self.norm2(x), cond, sites)
        return x + self.mlp(self.norm3(x) * (1 + mlp_scale) + mlp_shift) * mlp_gate
