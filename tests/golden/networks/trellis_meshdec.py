"""TRELLIS' mesh decoder up to its output layer: attention in shifted windows, then voxels divided into eight, twice."""

from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

import sparse_ops.torch.ops  # noqa: F401 (torch.ops.sparse_ops)
from tests.golden.networks.layers import Layers

ops = torch.ops.sparse_ops
WAVELENGTH = 10000.0
CURVES = "z_order", "z_order_transposed", "hilbert", "hilbert_transposed"  # of a block and those that follow it


def build(spconv: ModuleType, config: dict) -> nn.Module:
    return MeshDecoder(spconv, config)


class HeadNorm(nn.Module):
    """Queries or keys [N, heads, d], each to length sqrt(d) and scaled."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.gamma, self.scale = nn.Parameter(torch.ones(heads, width)), width**0.5

    def forward(self, x: torch.Tensor):
        return F.normalize(x, dim=-1) * self.gamma * self.scale


class Attention(nn.Module):
    """Self-attention of the voxels of one batch element, all or those within one window."""

    def __init__(self, arch: dict, number: int):
        super().__init__()
        channels, heads, normalised = arch["model_channels"], arch["num_heads"], arch.get("qk_rms_norm", False)
        self.heads, self.partition = heads, partition(arch, number)
        self.to_qkv, self.to_out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        if normalised:
            self.q_rms_norm, self.k_rms_norm = HeadNorm(heads, channels // heads), HeadNorm(heads, channels // heads)
        self.normalised = normalised

    def forward(self, x: torch.Tensor, indices: torch.Tensor, batch_size: int):
        q, k, v = self.to_qkv(x).reshape(x.shape[0], 3, self.heads, x.shape[1] // self.heads).unbind(1)
        if self.normalised:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        q_order, q_offsets, k_order, k_offsets = self.partition(indices, batch_size)
        out = ops.attention(q, k, v, q_offsets, k_offsets, None, q_order, k_order)
        return self.to_out(out.reshape(x.shape))


def partition(arch: dict, number: int):
    """Which rows attend to which in block `number`: indices [N, 4] and a batch size to the order and offsets of queries and of
    keys, as `attention` takes them. ValueError for a mode that there is not."""
    mode, window = arch["attn_mode"], arch.get("window_size")
    odd = number % 2
    if mode == "full":
        return _elements
    if mode == "swin":
        return partial(_windows, window=window, shift=window // 2 * odd)
    if mode == "shift_window":
        return partial(_along_a_curve, window=window, shift=16 * odd)
    if mode == "shift_sequence":
        return partial(_along_a_curve, window=window, shift_sequence=window // 2 * odd)
    if mode == "shift_order":
        return partial(_along_a_curve, window=window, curve=CURVES[number % len(CURVES)])
    raise ValueError(f"attn_mode: expected full, swin, shift_window, shift_sequence or shift_order, given {mode!r}")


def _elements(indices: torch.Tensor, batch_size: int):
    offsets = ops.batch_offsets(indices, batch_size)
    return None, offsets, None, offsets


def _windows(indices: torch.Tensor, batch_size: int, window: int, shift: int):
    order, offsets = ops.window_partition(indices, [window] * 3, [shift] * 3)
    return order, offsets, order, offsets


def _along_a_curve(
    indices: torch.Tensor, batch_size: int, window: int, shift: int = 0, shift_sequence: int = 0, curve: str = CURVES[0]
):
    return ops.serialized_partition(indices, window, shift_sequence, [shift] * 3, curve)


class Mlp(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels))

    def forward(self, x: torch.Tensor):
        return self.mlp(x)


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and around a skip."""

    def __init__(self, arch: dict, number: int):
        super().__init__()
        channels = arch["model_channels"]
        affine, eps = arch.get("layer_norm_affine", False), arch.get("layer_norm_eps", 1e-6)
        self.norm1 = nn.LayerNorm(channels, eps, elementwise_affine=affine)
        self.norm2 = nn.LayerNorm(channels, eps, elementwise_affine=affine)
        self.attn = Attention(arch, number)
        self.mlp = Mlp(channels, int(channels * arch["mlp_ratio"]))

    def forward(self, x):
        x = x.replace_feature(x.features + self.attn(self.norm1(x.features), x.indices, x.batch_size))
        return x.replace_feature(x.features + self.mlp(self.norm2(x.features)))


class GroupNorm(nn.Module):
    """Over all rows of a batch element and the channels of a group."""

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        offsets = ops.batch_offsets(x.indices, x.batch_size)
        return x.replace_feature(ops.group_norm(x.features, offsets, self.weight, self.bias, self.groups, self.eps))


class SiLU(nn.Module):
    def forward(self, x):
        return x.replace_feature(F.silu(x.features))


class Conv(nn.Module):
    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x)


class SubdivideBlock(nn.Module):
    """Every voxel becomes eight; two convolutions with norms around a skip."""

    def __init__(self, layers: Layers, name: str, arch: dict):
        super().__init__()
        self.sparse_tensor = layers.spconv.SparseConvTensor
        conv1, conv2 = (Conv(layers.conv(f"{name}.out_layers.{child}.conv")) for child in (0, 3))
        narrow, wide = conv1.conv.out_channels, conv1.conv.in_channels
        groups, eps = arch.get("group_norm_groups", 32), arch.get("group_norm_eps", 1e-5)
        self.act_layers = nn.Sequential(GroupNorm(groups, wide, eps), SiLU())
        self.out_layers = nn.Sequential(conv1, GroupNorm(groups, narrow, eps), SiLU(), conv2)
        skip = f"{name}.skip_connection.conv"
        self.skip_connection = Conv(layers.conv(skip)) if skip in layers.trace else nn.Identity()

    def forward(self, x):
        h, skip = self.subdivided(self.act_layers(x)), self.subdivided(x)
        skip = h.replace_feature(skip.features)  # on the sites of h, whose kernel maps it shares
        h = self.out_layers(h)
        return h.replace_feature(h.features + self.skip_connection(skip).features)

    def subdivided(self, x):
        features = x.features.unsqueeze(1).expand(-1, 8, -1).flatten(0, 1)
        return self.sparse_tensor(features, ops.subdivide(x.indices, [2, 2, 2]), [2 * n for n in x.spatial_shape], x.batch_size)


class MeshDecoder(nn.Module):
    """Latents [N, C] of voxels (batch, x, y, z), batch elements one after the other, to features of finer voxels."""

    def __init__(self, spconv: ModuleType, config: dict):
        super().__init__()
        arch, layers = config["arch"], Layers(spconv, config)
        if arch.get("pe_mode", "ape") != "ape":
            raise ValueError(f"pe_mode: expected 'ape', given {arch['pe_mode']!r}")
        upsample = [f"upsample.{child}" for child in layers.children("upsample")]
        first, last = layers.trace[f"{upsample[0]}.out_layers.0.conv"], layers.trace[f"{upsample[-1]}.out_layers.3.conv"]
        self.sparse_tensor, self.batch_size = spconv.SparseConvTensor, config["batch_size"]
        self.spatial_shape = [n // 2 for n in first["shape_in"]]
        self.channels = arch["model_channels"]
        self.input_layer = nn.Linear(arch["latent_channels"], self.channels)
        self.blocks = nn.ModuleList([Block(arch, number) for number in range(arch["num_blocks"])])
        self.upsample = nn.ModuleList([SubdivideBlock(layers, name, arch) for name in upsample])
        self.out_layer = nn.Linear(last["c_out"], arch["out_channels"])

    def forward(self, features: torch.Tensor, indices: torch.Tensor):
        x = self.sparse_tensor(
            self.input_layer(features) + self.positions(indices), indices.int(), self.spatial_shape, self.batch_size
        )
        for block in (*self.blocks, *self.upsample):
            x = block(x)
        return x.replace_feature(self.out_layer(x.features))

    def positions(self, indices: torch.Tensor):
        """Sines, then cosines, of each coordinate at wavelengths up to `WAVELENGTH`, filled up with zeros."""
        count = self.channels // 3 // 2
        frequencies = WAVELENGTH ** -(torch.arange(count, dtype=torch.float32) / count)
        angles = indices[:, 1:].float().unsqueeze(-1) * frequencies  # [N, 3, count]
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
        return F.pad(waves, (0, self.channels - waves.shape[1]))
