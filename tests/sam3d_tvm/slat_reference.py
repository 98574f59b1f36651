"""The structured-latent generator in plain PyTorch and spconv: what the compiled one is compared with, in result and speed.

Written from the facts that come with the golden data and from `slat_oracle`; `state_dict` names are those of the checkpoint.
Everything is computed in every call, attention by `scaled_dot_product_attention`. spconv's convolutions run on one thread, as
with more their results are wrong on a CPU; all else runs on as many as torch is set to.
"""

import contextlib
import logging
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3d_tvm.models.slat_generator.config import SlatConfig

logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # spconv's import triggers a warning

import spconv.pytorch as spconv  # noqa: E402
from spconv.core import ConvAlgo  # noqa: E402

FREQUENCIES = 128  # of a time
NORM_EPS, FINAL_NORM_EPS = 1e-6, 1e-5


class SlatReference(nn.Module):
    """`forward(coords, x, t, cond)` is the velocity; parameters are set by `load_state_dict`."""

    def __init__(self, config: SlatConfig):
        super().__init__()
        self.config = config
        inner, widths = config.model_channels, config.widths
        self.input_layer = nn.Linear(config.in_channels, widths[0])
        self.t_embedder = TimeEmbedder(inner)
        self.input_blocks = nn.ModuleList(ResBlock(widths[a], inner, widths[b]) for a, b in config.input_moves)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.out_blocks = nn.ModuleList(ResBlock(2 * widths[a], inner, widths[b]) for a, b in config.out_moves)
        self.out_layer = nn.Linear(widths[0], config.out_channels)

    @classmethod
    def of(cls, config: SlatConfig, state) -> "SlatReference":
        """With the parameters of `state`, arrays by name, of which no second copy is kept."""
        with torch.device("meta"):
            model = cls(config)
        tensors = {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in state.items()}
        model.load_state_dict(tensors, strict=True, assign=True)
        return model.requires_grad_(False)

    @torch.inference_mode()
    def forward(self, coords: Tensor, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """coords int32 [N, 4], x [N, in_channels], t [B] times 1000, cond [B, L, cond_channels] -> [N, out_channels]."""
        levels, parents = [self._sites(coords, 0, len(cond))], []
        for level in range(self.config.levels):
            halved = levels[-1].indices // torch.tensor([1, 2, 2, 2], dtype=torch.int32)
            coarser, parent = torch.unique(halved, dim=0, return_inverse=True)
            levels.append(self._sites(coarser, level + 1, len(cond)))
            parents.append(parent)
        emb = self.t_embedder(t)

        h, skips = self.input_layer(x), []
        for block, (source, target) in zip(self.input_blocks, self.config.input_moves, strict=True):
            if source < target:
                h = pooled(h, parents[source], len(levels[target].indices))
            h = block(h, emb, levels[target])
            skips.append(h)
        index = levels[-1].indices[:, 0].long()
        h = h + positions(levels[-1].indices, self.config.model_channels)
        for block in self.blocks:
            h = block(h, emb, cond, index)
        for block, (source, target) in zip(self.out_blocks, self.config.out_moves, strict=True):
            h = torch.cat([h, skips.pop()], dim=1)
            if source > target:
                h = h[parents[target]]
            h = block(h, emb, levels[target])
        return self.out_layer(F.layer_norm(h, h.shape[1:], eps=FINAL_NORM_EPS))

    def _sites(self, coords: Tensor, level: int, batch: int) -> spconv.SparseConvTensor:
        """Sites that remember their kernel map."""
        extent = -(-self.config.resolution // 2**level)
        return spconv.SparseConvTensor(torch.zeros(len(coords), 1), coords, [extent] * 3, batch)


class TimeEmbedder(nn.Module):
    """128 cosines, then 128 sines of the time, through linear, SiLU, linear."""

    def __init__(self, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(FREQUENCIES, dtype=torch.float32)
        angles = t[:, None] * torch.exp(-math.log(10000) * steps / FREQUENCIES)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


def float32() -> torch.autocast:
    """For spconv, which has no bfloat16 on a CPU; all else may run under autocast."""
    return torch.autocast("cpu", enabled=False)


class Conv(nn.Module):
    """A submanifold convolution under the name `conv`."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = spconv.SubMConv3d(channels, out_channels, 3, indice_key="map", algo=ConvAlgo.Native)
        self.conv.train()  # in eval mode spconv refuses a bias on a CPU

    def forward(self, x: Tensor, sites: spconv.SparseConvTensor) -> Tensor:
        if len(x) == 0:  # spconv takes no empty tensors
            return x.new_zeros(0, self.conv.out_channels)
        given = spconv.SparseConvTensor(x.float(), sites.indices, sites.spatial_shape, sites.batch_size)
        given.indice_dict = sites.indice_dict
        with one_thread(), float32():
            return self.conv(given).features


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, modulated norm, SiLU, convolution, and a skip. The resolution changes outside."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(out_channels, eps=NORM_EPS, elementwise_affine=False)
        self.conv1 = Conv(channels, out_channels)
        self.conv2 = Conv(out_channels, out_channels)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.skip_connection = nn.Linear(channels, out_channels) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, sites: spconv.SparseConvTensor) -> Tensor:
        scale, shift = self.emb_layers(emb)[sites.indices[:, 0].long()].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)), sites)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift), sites)
        return h + self.skip_connection(x)


class Norm(nn.Module):
    """A norm of every head's queries or keys."""

    def __init__(self, heads: int, head_dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.gamma * self.gamma.shape[-1] ** 0.5


class SelfAttention(nn.Module):
    def __init__(self, channels: int, heads: int, qk_rms_norm: bool):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        self.q_rms_norm, self.k_rms_norm = (Norm(heads, channels // heads) if qk_rms_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, index: Tensor, batch: int) -> Tensor:
        q, k, v = self.to_qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        q, k, parts = self.q_rms_norm(q), self.k_rms_norm(k), index.bincount(minlength=batch).tolist()
        return self.to_out(attention(q.split(parts), k.split(parts), v.split(parts)))


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context_channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(context_channels, 2 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, cond: Tensor, index: Tensor) -> Tensor:
        q = self.to_q(x).view(len(x), self.heads, -1)
        k, v = self.to_kv(cond).view(*cond.shape[:2], 2, self.heads, -1).unbind(2)
        return self.to_out(attention(q.split(index.bincount(minlength=len(cond)).tolist()), k, v))


class FeedForward(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


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

    def forward(self, x: Tensor, emb: Tensor, cond: Tensor, index: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(emb).chunk(6, dim=1)
        h = self.norm1(x) * (1 + scale[index]) + shift[index]
        x = x + self.self_attn(h, index, len(cond)) * gate[index]
        x = x + self.cross_attn(self.norm2(x), cond, index)
        h = self.norm3(x) * (1 + mlp_scale[index]) + mlp_shift[index]
        return x + self.mlp(h) * mlp_gate[index]


def attention(q, k, v) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of every batch element, whose rows [N, H, D] are put together again as [N, H * D]."""
    elements = []
    for parts in zip(q, k, v, strict=True):
        q_, k_, v_ = (part.transpose(0, 1)[None] for part in parts)
        elements.append(F.scaled_dot_product_attention(q_, k_, v_)[0].transpose(0, 1).flatten(1))
    return torch.cat(elements)


def pooled(x: Tensor, parent: Tensor, rows: int) -> Tensor:
    """The mean of the rows of every parent and one row of zeros: upstream's mean counts that too."""
    count = parent.bincount(minlength=rows)[:, None] + 1
    return x.new_zeros(rows, x.shape[1]).index_add_(0, parent, x) / count


def positions(coords: Tensor, channels: int) -> Tensor:
    """For each of x, y, z the sines of channels // 6 frequencies, then the cosines; zeros fill up the end."""
    count = channels // 6
    frequencies = 1 / 10000 ** (torch.arange(count, dtype=torch.float32) / max(count, 1))
    angles = coords[:, 1:, None].float() * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
    return F.pad(waves, (0, channels - waves.shape[1]))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """With more, spconv adds into shared rows without a lock."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
