"""The embedder that feeds DINOv2 images or masks."""

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from sam3d_tvm.models.condition_embedder.config import DINO_PRESETS, DinoConfig
from sam3d_tvm.models.dinov2 import MEAN, STD
from sam3d_tvm.models.dinov2_torch import DinoV2
from sam3d_tvm.models.example_torch import Example, seeded

PRENORM_EPS = 1e-5  # of the norm without weights that takes the place of the last one


class Dino(nn.Module):
    """DINOv2 on images or masks of any size."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.config = config
        self.backbone = DinoV2(config, (config.grid,) * 2)

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


def example(size: str, seed: int = 0) -> Example:
    """One image through the embedder."""
    config = DINO_PRESETS[size]
    module = seeded(partial(Dino, config), seed)
    image = torch.rand(1, 3, config.input_size, config.input_size, generator=torch.Generator().manual_seed(seed))

    def reference() -> Mapping[str, torch.Tensor]:
        return {"tokens": module(image)}

    def run(component):
        return lambda: {"tokens": component(image)}

    return Example(module, {"forward": (image,)}, reference, run, products_only=True)
