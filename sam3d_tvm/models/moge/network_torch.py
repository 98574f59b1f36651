"""The network of the depth model, with upstream's parameter names, for photos of any shape."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from sam3d_tvm.models.dinov2 import MEAN, STD
from sam3d_tvm.models.dinov2_torch import DinoV2
from sam3d_tvm.models.moge.config import NORM_CHANNELS, UV, MogeConfig


class ResidualBlock(nn.Module):
    """Two convolutions under norms of one group, and of groups of `NORM_CHANNELS`; x [B, C, H, W] -> the same shape."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.ReLU(),
            _conv(channels, hidden, 3),
            nn.GroupNorm(hidden // NORM_CHANNELS, hidden),
            nn.ReLU(),
            _conv(hidden, channels, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Head(nn.Module):
    """Features of patches -> points and mask at every pixel of the resized photo."""

    def __init__(self, config: MogeConfig):
        super().__init__()
        widths = (config.dim_proj, *config.dim_upsample)
        self.projects = nn.ModuleList(
            nn.Conv2d(config.encoder.embed_dim, config.dim_proj, 1) for _ in range(config.intermediate_layers)
        )
        self.upsample_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.ConvTranspose2d(before + UV, width, 2, 2), _conv(width, width, 3)),
                *(ResidualBlock(width, width * config.dim_times_res_block_hidden) for _ in range(config.num_res_blocks)),
            )
            for before, width in pairwise(widths)
        )
        self.output_block = nn.ModuleList(
            nn.Sequential(
                _conv(widths[-1] + UV, config.last_conv_channels, 3),
                nn.ReLU(),
                _conv(config.last_conv_channels, channels, config.last_conv_size),
            )
            for channels in (3, 1)
        )

    def forward(
        self, features: list[torch.Tensor], rows: int, columns: int, span: torch.Tensor, u: torch.Tensor, v: torch.Tensor
    ) -> list[torch.Tensor]:
        """features [B, rows * columns, C], see `MoGeModel.forward` for the others -> points and mask, [B, 3 or 1, H, W]."""
        x = self.with_uv(self.projected(features, rows, columns), span)
        for i, block in enumerate(self.upsample_blocks):
            x = block(x)
            if i + 1 < len(self.upsample_blocks):
                x = self.with_uv(x, span)
        x = self.resized(x, u, v)
        return [block(x) for block in self.output_block]

    def projected(self, features: list[torch.Tensor], rows: int, columns: int) -> torch.Tensor:
        """features [B, rows * columns, C] -> the sum of their projections, [B, dim_proj, rows, columns].

        A convolution of 1 x 1 is a linear layer, and patches are rows already.
        """
        parts = [F.linear(x, p.weight.flatten(1), p.bias) for x, p in zip(features, self.projects, strict=True)]
        return sum(parts[1:], parts[0]).transpose(1, 2).unflatten(2, (rows, columns))

    def with_uv(self, x: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W] -> [B, C + 2, H, W]: u of every column behind the features, then v of every row."""
        u, v = (_centres(size) * half for size, half in zip((x.shape[3], x.shape[2]), span.unbind(), strict=True))
        return _with_planes(x, u, v)

    def resized(self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W] -> [B, C + 2, len(v), len(u)]: what both output blocks see."""
        x = F.interpolate(x, (v.shape[0], u.shape[0]), mode="bilinear", align_corners=False)
        return _with_planes(x, u, v)


class MoGeModel(nn.Module):
    """A photo -> raw points and a raw mask at its resized size. What `run.DepthModel` does beside it is not in the graph."""

    def __init__(self, config: MogeConfig):
        super().__init__()
        self.config = config
        self.backbone = DinoV2(config.encoder)
        self.head = Head(config)
        for name, values in (("image_mean", MEAN), ("image_std", STD)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1))

    def forward(
        self,
        image: torch.Tensor,
        along_rows: torch.Tensor,
        along_columns: torch.Tensor,
        span: torch.Tensor,
        u: torch.Tensor,
        v: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Any number of rows and columns of patches, any height and width of the result.

        image [3, rows, patch, columns, patch], colours in 0..1: an image whose sides are multiples of the patch's, its axes
        split; along_rows [rows, M], along_columns [columns, M]: `dinov2.position_matrices`; span [2]: half of the range of u
        and of v, which reach from edge to edge; u [width], v [height]: at the centres of the result's pixels. All float32.
        Returns raw `points` [3, height, width] and raw `mask` [height, width].
        """
        rows, columns = along_rows.shape[0], along_columns.shape[0]
        last = self.config.intermediate_layers
        features = self.backbone.patches_of_last(last, self.normalised(image), (along_rows, along_columns))
        points, mask = self.head(features, rows, columns, span, u, v)
        return {"points": points[0], "mask": mask[0, 0]}

    def normalised(self, image: torch.Tensor) -> torch.Tensor:
        """image [3, rows, patch, columns, patch] -> [1, 3, rows * patch, columns * patch], by the statistics of the model."""
        return (image.flatten(3).flatten(1, 2).unsqueeze(0) - self.image_mean) / self.image_std

    def stages(
        self,
        image: torch.Tensor,
        along_rows: torch.Tensor,
        along_columns: torch.Tensor,
        span: torch.Tensor,
        u: torch.Tensor,
        v: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Inner results on the way to what `forward` returns, by name; for tests."""
        rows, columns = along_rows.shape[0], along_columns.shape[0]
        image = self.normalised(image)
        found = {"image_14": image} | self.backbone.stages(image, (along_rows, along_columns))
        depth, last = self.config.encoder.depth, self.config.intermediate_layers
        features = [self.backbone.last_patches(found[f"block{i}"]) for i in range(depth - last, depth)]
        found |= {f"feature{i}": feature for i, feature in enumerate(features)}
        x = self.head.projected(features, rows, columns)
        for i, block in enumerate(self.head.upsample_blocks):
            x = self.head.with_uv(x, span)
            found[f"upsample{i}_in"] = x
            found[f"upsample{i}_conv"] = x = block[0](x)
            found[f"upsample{i}"] = x = block[1:](x)
        found["head_in"] = x = self.head.resized(x, u, v)
        points, mask = self.head.output_block
        return found | {"head_points": points(x), "head_mask": mask(x)}

    def inputs(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """Example inputs, of 2 x 3 patches; any others may come."""
        rows, columns, patch, stored = 2, 3, self.config.encoder.patch_size, self.config.encoder.stored_grid
        image, matrices = (3, rows, patch, columns, patch), ((rows, stored), (columns, stored))
        shapes = (image, *matrices, (2,), (columns * patch,), (rows * patch,))
        return {"forward": tuple(torch.zeros(shape) for shape in shapes)}

    def dynamic(self) -> dict[str, dict[str, dict]]:
        """Sizes of the inputs that are any."""
        rows, columns, height, width = map(Dim, ("rows", "columns", "height", "width"))
        sizes = {"image": {1: rows, 3: columns}, "along_rows": {0: rows}, "along_columns": {0: columns}, "span": {}}
        return {"forward": sizes | {"u": {0: width}, "v": {0: height}}}


def _conv(channels: int, out_channels: int, size: int) -> nn.Conv2d:
    """Of the same size, padded by the pixels at the edge."""
    return nn.Conv2d(channels, out_channels, size, padding=size // 2, padding_mode="replicate")


def _centres(size: int) -> torch.Tensor:
    """float32 [size]: the centres of as many pixels, from -1 to 1."""
    return (2 * torch.arange(size) + (1 - size)).to(torch.float32) / size


def _with_planes(x: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """x [B, C, H, W], u [W], v [H] -> [B, C + 2, H, W]."""
    batch, _, height, width = x.shape
    planes = torch.stack([u.expand(height, width), v.unsqueeze(1).expand(height, width)])
    return torch.cat([x, planes.expand(batch, -1, -1, -1)], dim=1)
