"""DINOv2 (arXiv:2304.07193), with registers (arXiv:2309.16588) or without, on images of one size or of any."""

import torch
import torch.nn.functional as F
from torch import nn

from sam3d_tvm.models.dinov2 import DinoV2Config, position_matrices

NORM_EPS = 1e-6

Resampling = tuple[torch.Tensor, torch.Tensor]  # float32 [rows, M] and [columns, M], of the M x M positions that are stored


class Attention(nn.Module):
    """Multi-head self-attention, x [B, S, C] -> the same shape."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._attend(*self.qkv(x).chunk(3, dim=-1))

    def first(self, x: torch.Tensor) -> torch.Tensor:
        """The first token of what `forward` returns, [B, 1, C], without the queries of the others."""
        channels = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x[:, :1], weight[:channels], bias[:channels])
        return self._attend(q, *F.linear(x, weight[channels:], bias[channels:]).chunk(2, dim=-1))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))  # [B, H, S, D]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A factor for each channel (arXiv:2103.17239)."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm self-attention and feed-forward layer, x [B, S, C] -> the same shape."""

    def __init__(self, channels: int, heads: int, hidden: int, layer_scale: bool):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=NORM_EPS) for _ in range(2))
        self.attn, self.mlp = Attention(channels, heads), FeedForward(channels, hidden)
        self.ls1, self.ls2 = (LayerScale(channels) if layer_scale else nn.Identity() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))

    def first(self, x: torch.Tensor) -> torch.Tensor:
        """The first token of what `forward` returns, [B, 1, C], without the work for the others."""
        first = x[:, :1] + self.ls1(self.attn.first(self.norm1(x)))
        return first + self.ls2(self.mlp(self.norm2(first)))


class PatchEmbed(nn.Module):
    """Square patches to tokens, image [B, 3, H, W] -> [B, H * W / patch_size^2, C], row by row."""

    def __init__(self, channels: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch_size, patch_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class DinoV2(nn.Module):
    """The vision transformer, on images [B, 3, rows * patch_size, columns * patch_size].

    `grid`: rows and columns of its patches where these are always the same. Without, each call brings `resampling`: for the
    rows and for the columns a matrix, as `position_matrices` makes them.
    """

    def __init__(self, config: DinoV2Config, grid: tuple[int, int] | None = None):
        super().__init__()
        channels, registers = config.embed_dim, config.num_register_tokens
        self.stored_grid, self.registers = config.stored_grid, registers
        self.patch_embed = PatchEmbed(channels, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, channels))
        self.mask_token = nn.Parameter(torch.zeros(1, channels))  # of training, never read here
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.stored_grid**2, channels))
        self.blocks = nn.ModuleList(
            Block(channels, config.num_heads, config.hidden, layer_scale=True) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.keeps_positions = grid == (config.stored_grid,) * 2
        self.resampling = None if grid is None or self.keeps_positions else fixed_resampling(config, *grid)

    def positions(self, resampling: Resampling | None = None) -> torch.Tensor:
        """Positional embeddings of the class token and of the patches, [1, 1 + P, C].

        The stored grid is resized as an image, which is one linear map along each axis.
        """
        if self.keeps_positions:
            return self.pos_embed
        along_rows, along_columns = resampling or self.resampling
        rows, channels = along_rows.shape[0], self.pos_embed.shape[-1]
        grid = self.pos_embed[0, 1:].reshape(self.stored_grid, -1)  # [stored rows, stored columns * C]
        resized = (along_rows @ grid).reshape(rows, self.stored_grid, channels)
        resized = torch.matmul(along_columns, resized).reshape(1, -1, channels)
        return torch.cat([self.pos_embed[:, :1], resized], dim=1)

    def tokens(self, image: torch.Tensor, resampling: Resampling | None = None) -> torch.Tensor:
        """Class token, registers and patches, [B, 1 + R + P, C], before the first block."""
        return self._with_positions(self.patch_embed(image), self.positions(resampling))

    def _with_positions(self, patches: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        batch = patches.shape[0]
        cls = (self.cls_token + positions[:, :1]).expand(batch, -1, -1)
        registers = [self.register_tokens.expand(batch, -1, -1)] if self.registers else []
        return torch.cat([cls, *registers, patches + positions[:, 1:]], dim=1)

    def forward(self, image: torch.Tensor, resampling: Resampling | None = None) -> torch.Tensor:
        """All tokens behind the last block, not normalised, [B, 1 + R + P, C]."""
        x = self.tokens(image, resampling)
        for block in self.blocks:
            x = block(x)
        return x

    def patches_of_last(self, count: int, image: torch.Tensor, resampling: Resampling | None = None) -> list[torch.Tensor]:
        """The patches behind each of the last `count` blocks, under the last norm, [B, P, C]."""
        x, found = self.tokens(image, resampling), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return [self.last_patches(x) for x in found[len(found) - count :]]

    def last_patches(self, x: torch.Tensor) -> torch.Tensor:
        """All tokens [B, 1 + R + P, C] behind a block -> the patches among them, under the last norm, [B, P, C]."""
        return self.norm(x)[:, 1 + self.registers :]

    def stages(self, image: torch.Tensor, resampling: Resampling | None = None) -> dict[str, torch.Tensor]:
        """Inner results on the way to what `forward` returns, by name."""
        patches, positions = self.patch_embed(image), self.positions(resampling)
        x = self._with_positions(patches, positions)
        found = {"pos_embed_interpolated": positions, "patch_embed": patches, "tokens_in": x}
        for i, block in enumerate(self.blocks):
            x = block(x)
            found[f"block{i}"] = x
        return found


def fixed_resampling(config: DinoV2Config, rows: int, columns: int) -> Resampling:
    """What resizes the stored positions to a grid that is known, by the config's kind of interpolation."""
    with torch.device("cpu"):  # constants, also of a module without memory for its parameters
        if config.interpolate_antialias:
            return tuple(_antialiased(config.stored_grid, new) for new in (rows, columns))
        return tuple(map(torch.from_numpy, position_matrices(config, rows, columns)))


def _antialiased(old: int, new: int) -> torch.Tensor:
    """[new, old]: what resizing by bicubic interpolation with antialiasing makes of an axis."""
    return F.interpolate(torch.eye(old)[None, None], (new, old), mode="bicubic", antialias=True)[0, 0]
