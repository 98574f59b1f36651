"""DINOv2 with registers (arXiv:2304.07193, arXiv:2309.16588), and the embedder that feeds it images or masks."""

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from sam3d_tvm.models.condition_embedder.config import DINO_PRESETS, DinoConfig
from sam3d_tvm.models.example_torch import Example, seeded

NORM_EPS = 1e-6
PRENORM_EPS = 1e-5  # of the norm without weights that takes the place of the last one
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, which lie in 0..1


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
    """The vision transformer, on images of `config.input_size`."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        channels, self.grid, self.stored_grid = config.embed_dim, config.grid, config.stored_grid
        self.patch_embed = PatchEmbed(channels, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, channels))
        self.mask_token = nn.Parameter(torch.zeros(1, channels))  # of training, never read here
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.stored_grid**2, channels))
        self.blocks = nn.ModuleList(
            Block(channels, config.num_heads, config.hidden, layer_scale=True) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.resampling = bicubic_matrix(self.stored_grid, self.grid)

    def positions(self) -> torch.Tensor:
        """Positional embeddings of the class token and of the patches, [1, 1 + P, C].

        The stored grid is resized as an image, bicubic with antialiasing. That is one linear map along each axis.
        """
        if self.grid == self.stored_grid:
            return self.pos_embed
        channels = self.pos_embed.shape[-1]
        grid = self.pos_embed[0, 1:].reshape(self.stored_grid, -1)  # [rows, columns * C]
        rows = (self.resampling @ grid).reshape(self.grid, self.stored_grid, channels)
        columns = torch.matmul(self.resampling, rows).reshape(1, -1, channels)
        return torch.cat([self.pos_embed[:, :1], columns], dim=1)

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        """image [B, 3, input_size, input_size] -> class token, registers and patches, [B, 1 + R + P, C]."""
        return self._with_positions(self.patch_embed(image))

    def _with_positions(self, patches: torch.Tensor) -> torch.Tensor:
        batch, positions = patches.shape[0], self.positions()
        cls = (self.cls_token + positions[:, :1]).expand(batch, -1, -1)
        return torch.cat([cls, self.register_tokens.expand(batch, -1, -1), patches + positions[:, 1:]], dim=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image [B, 3, input_size, input_size] -> all tokens behind the last block, not normalised, [B, 1 + R + P, C]."""
        x = self.tokens(image)
        for block in self.blocks:
            x = block(x)
        return x

    def stages(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inner results on the way to what `forward` returns, by name."""
        patches = self.patch_embed(image)
        x = self._with_positions(patches)
        found = {"pos_embed_interpolated": self.positions(), "patch_embed": patches, "tokens_in": x}
        for i, block in enumerate(self.blocks):
            x = block(x)
            found[f"block{i}"] = x
        return found


class Dino(nn.Module):
    """DINOv2 on images or masks of any size."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.config = config
        self.backbone = DinoV2(config)

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """image [B, 3, H, W], or mask [B, 1, H, W], in 0..1 -> [B, 3, input_size, input_size], by ImageNet's statistics."""
        size = (self.config.input_size,) * 2
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values, device="cpu").reshape(3, 1, 1) for values in (MEAN, STD))
        return (image.expand(-1, 3, -1, -1) - mean) / std

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image [B, 3, H, W], or mask [B, 1, H, W], in 0..1 -> tokens [B, T, C].

        With `prenorm_features` all tokens, under a norm without weights, else all but the registers under the model's own.
        """
        return self.features(self.backbone(self.preprocess(image)))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [B, 1 + R + P, C] behind the last block -> what `forward` returns."""
        if self.config.prenorm_features:
            return F.layer_norm(x, x.shape[-1:], eps=PRENORM_EPS)
        x = self.backbone.norm(x)
        return torch.cat([x[:, :1], x[:, 1 + self.config.num_register_tokens :]], dim=1)

    def stages(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inner results on the way to what `forward` returns, by name, and this as `tokens`; for tests."""
        image = self.preprocess(image)
        found = self.backbone.stages(image)
        return {"preprocessed_image": image, **found, "tokens": self.features(found[f"block{self.config.depth - 1}"])}


def bicubic_matrix(old: int, new: int) -> torch.Tensor:
    """[new, old]: what resizing by bicubic interpolation with antialiasing makes of an axis."""
    with torch.device("cpu"):
        return F.interpolate(torch.eye(old)[None, None], (new, old), mode="bicubic", antialias=True)[0, 0]


def example(size: str, seed: int = 0) -> Example:
    """One image through the embedder."""
    config = DINO_PRESETS[size]
    module = seeded(partial(Dino, config), seed)
    image = torch.rand(1, 3, config.input_size, config.input_size, generator=torch.Generator().manual_seed(seed))

    def reference() -> Mapping[str, torch.Tensor]:
        return {"tokens": module(image)}

    return Example(module, {"forward": (image,)}, reference, lambda component: lambda: {"tokens": component(image)})
