"""All embedders of the condition, and what brings their tokens to one width and tells them apart."""

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from sam3d_tvm.models.condition_embedder.config import FUSER_PRESETS, DinoConfig, EmbedderFuserConfig
from sam3d_tvm.models.condition_embedder.dinov2_torch import Dino
from sam3d_tvm.models.condition_embedder.point_patch_embed_torch import PointPatchEmbed
from sam3d_tvm.models.condition_embedder.run import ConditionEmbedder
from sam3d_tvm.models.example_torch import Example, seeded


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x) (arXiv:2002.05202)."""

    def __init__(self, channels: int, hidden: int, out_channels: int):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(channels, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, out_channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class EmbedderFuser(nn.Module):
    """Images, masks and point maps -> the tokens that the generators see.

    `forward` takes all inputs at once. Beside it one method for each embedder, which takes one of its inputs at the size of
    the embedder, and the number of the input's group, int64 [1].
    """

    def __init__(self, config: EmbedderFuserConfig):
        super().__init__()
        self.config = config
        self.module_list = nn.ModuleList(
            (Dino if isinstance(embedder.model, DinoConfig) else PointPatchEmbed)(embedder.model)
            for embedder in config.embedders
        )
        self.projection_nets = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), SwiGLU(width, config.hidden, config.channels))
            for width in (embedder.model.embed_dim for embedder in config.embedders)
        )
        self.idx_emb = nn.Parameter(torch.zeros(1 + len(config.groups), config.channels))

    def forward(self, **images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, H, W], masks [B, 1, H, W] in 0..1 and point maps [B, 3, H, W] by name -> tokens [B, L, C]."""
        parts = [
            project(embed(images[name])) + self.idx_emb[self.config.groups[group]]
            for embedder, embed, project in zip(self.config.embedders, self.module_list, self.projection_nets, strict=True)
            for name, group in embedder.inputs
        ]
        return torch.cat(parts, dim=1)

    def embed_image(self, image: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        return self._embed("image", image, group)

    def embed_mask(self, mask: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        return self._embed("mask", mask, group)

    def embed_pointmap(self, pointmap: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        return self._embed("pointmap", pointmap, group)

    def _embed(self, kind: str, x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """x [B, channels, size, size] -> its tokens [B, T, C], projected and with the position of its group."""
        place = [embedder.kind for embedder in self.config.embedders].index(kind)
        model = self.module_list[place]
        tokens = model.embed(x) if isinstance(model, PointPatchEmbed) else model(x)
        # compiled code does not check where it reads
        return self.projection_nets[place](tokens) + self.idx_emb[group.clamp(0, len(self.idx_emb) - 1)]

    def inputs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Example inputs of every embedder's method, by its name: one image, mask or point map."""
        images = {
            embedder.method: torch.zeros(1, embedder.channels, *(embedder.model.input_size,) * 2)
            for embedder in self.config.embedders
        }
        return {method: (image, torch.zeros(1, dtype=torch.int64)) for method, image in images.items()}


def example(size: str, seed: int = 0, style: str = "ss") -> Example:
    """One of every input at the size of its embedder. `style`: "ss" or "slat"."""
    config = FUSER_PRESETS[style][size]
    module = seeded(partial(EmbedderFuser, config), seed)
    random = torch.Generator().manual_seed(seed)
    images = {
        name: torch.rand(1, embedder.channels, *(embedder.model.input_size,) * 2, generator=random)
        for embedder in config.embedders
        for name, _ in embedder.inputs
    }

    def reference() -> Mapping[str, torch.Tensor]:
        return {"tokens": module(**images)}

    def run(component):
        embedder, arrays = ConditionEmbedder(component, config), {name: image.numpy() for name, image in images.items()}
        return lambda: {"tokens": embedder.tokens(arrays)}

    return Example(module, module.inputs(), reference, run, products_only=True)
