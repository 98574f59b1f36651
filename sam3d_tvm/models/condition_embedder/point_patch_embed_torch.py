"""Tokens of a point map: each window of pixels is summed up by one transformer block."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from sam3d_tvm.models.condition_embedder.config import POINT_PATCH_PRESETS, PointPatchConfig
from sam3d_tvm.models.dinov2_torch import Block
from sam3d_tvm.models.example_torch import Example, seeded
from sam3d_tvm.resize import nearest_index


class PointPatchEmbed(nn.Module):
    """Point map [B, 3, H, W] -> tokens [B, P, C], one for each window of `patch_size`^2 pixels, row by row."""

    def __init__(self, config: PointPatchConfig):
        super().__init__()
        self.config = config
        channels, windows, pixels = config.embed_dim, config.grid, config.patch_size**2
        self.point_proj = nn.Linear(3, channels)
        self.invalid_xyz_token = nn.Parameter(torch.zeros(channels))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, 1 + pixels, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, channels, windows, windows))
        self.blocks = nn.ModuleList([Block(channels, config.num_heads, config.hidden, layer_scale=False)])

    def forward(self, xyz: torch.Tensor) -> torch.Tensor:
        """xyz [B, 3, H, W] in which NaN and infinity mark pixels without a point."""
        (block,) = self.blocks
        return self._of_windows(block(self.window_tokens(self.resized(xyz)))[:, :1], xyz.shape[0])

    def embed(self, xyz: torch.Tensor) -> torch.Tensor:
        """As `forward`, without what the block computes for tokens that are dropped behind it: all but the first."""
        (block,) = self.blocks
        return self._of_windows(block.first(self.window_tokens(self.resized(xyz))), xyz.shape[0])

    def resized(self, xyz: torch.Tensor) -> torch.Tensor:
        """xyz [B, 3, H, W] -> [B, 3, input_size, input_size], the nearest pixels as `F.interpolate` chooses them."""
        for axis in (2, 3):
            if xyz.shape[axis] != self.config.input_size:  # TVM's own resize chooses others
                index = torch.tensor(nearest_index(xyz.shape[axis], self.config.input_size))
                xyz = xyz.index_select(axis, index)
        return xyz

    def window_tokens(self, xyz: torch.Tensor) -> torch.Tensor:
        """xyz [B, 3, input_size, input_size] -> [B * P, 1 + patch_size^2, C]."""
        grid, size = self.config.grid, self.config.patch_size
        windows = xyz.reshape(-1, 3, grid, size, grid, size).permute(0, 2, 4, 3, 5, 1)  # moves 3 channels, not C
        points = self.embed_points(windows.reshape(-1, size * size, 3))
        cls = self.cls_token.expand(points.shape[0], -1, -1)
        return torch.cat([cls, points], dim=1) + self.pos_embed_window

    def embed_points(self, xyz: torch.Tensor) -> torch.Tensor:
        """xyz [..., 3] -> [..., C]; a token of their own for those that are not finite."""
        x, y, z = (xyz.abs() < torch.inf).unbind(-1)
        valid = (x & y & z).unsqueeze(-1)
        return torch.where(valid, self.point_proj(torch.where(valid, xyz, 0.0)), self.invalid_xyz_token)

    def _of_windows(self, first: torch.Tensor, batch: int) -> torch.Tensor:
        """First tokens [B * P, 1, C] -> [B, P, C], with their positions."""
        return first.reshape(batch, -1, self.config.embed_dim) + self.pos_embed.flatten(2).transpose(1, 2)

    def stages(self, xyz: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inner results on the way to what `forward` returns, by name, and this as `tokens`; for tests."""
        (block,) = self.blocks
        xyz = self.resized(xyz)
        pixels = xyz.permute(0, 2, 3, 1)
        before = self.window_tokens(xyz)
        after = block(before)
        found = {"resized_xyz": pixels, "point_embed": self.embed_points(pixels)}
        found |= {"window_tokens_in": before, "window_tokens_out": after}
        return found | {"tokens": self._of_windows(after[:, :1], xyz.shape[0])}


def example(size: str, seed: int = 0) -> Example:
    """One point map, a tenth of it without points."""
    config = POINT_PATCH_PRESETS[size]
    module = seeded(partial(PointPatchEmbed, config), seed)
    random = torch.Generator().manual_seed(seed)
    xyz = torch.randn(1, 3, config.input_size, config.input_size, generator=random)
    xyz[torch.rand(xyz[:, :1].shape, generator=random).expand_as(xyz) < 0.1] = torch.nan

    def reference() -> Mapping[str, torch.Tensor]:
        return {"tokens": module(xyz)}

    return Example(module, {"embed": (xyz,)}, reference, lambda component: lambda: {"tokens": component["embed"](xyz)})
