"""`outliers`: both settings of DINOv2 on a residual stream that has outlier channels, with keys and values to match.

Compiled as the models that use them are, so that in a narrower precision keys, values, norms and the residual stream are
float32. The bounds are for float32; `compute` has the tokens of any precision.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from torch import nn

from sam3d_tvm.models.condition_embedder import DinoConfig
from sam3d_tvm.models.condition_embedder.dinov2_torch import PRENORM_EPS, Dino
from sam3d_tvm.models.dinov2 import DinoV2Config
from sam3d_tvm.models.dinov2_torch import DinoV2
from sparse_ops.deploy.from_torch import port_component
from tests.golden import case_dino
from tests.golden.case import Case, Tensors


class Embedder(Dino):
    """All that the file has of the embedder, in both forms of its features."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.stages(image)
        last = found[f"block{self.config.depth - 1}"]
        prenorm = nn.functional.layer_norm(last, last.shape[-1:], eps=PRENORM_EPS)
        return found | {"x_prenorm": last, "tokens_prenorm": prenorm, "normalised": self.backbone.norm(last)}


class Backbone(nn.Module):
    """All that the file has of the depth model's backbone, on a grid that is known."""

    def __init__(self, config: DinoV2Config, grid: tuple[int, int], last: int):
        super().__init__()
        self.backbone, self.depth, self.last = DinoV2(config, grid), config.depth, last

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.backbone.stages(image)
        for i in range(self.last):
            x = self.backbone.norm(found[f"block{self.depth - self.last + i}"])
            found |= {f"feature{i}": x[:, 1:], f"class_token{i}": x[:, 0], "normalised": x}
        return found


def modules_of(tensors: Tensors, config: dict) -> Mapping[str, tuple[nn.Module, np.ndarray]]:
    """Module and input by part."""
    sizes = {part: _taken(kind, config[part]) for part, kind in (("dino", DinoConfig), ("moge", DinoV2Config))}
    grid = tuple(n // sizes["moge"].patch_size for n in config["moge"]["image_14"])
    make = {
        "dino": partial(Embedder, sizes["dino"]),
        "moge": partial(Backbone, sizes["moge"], grid, config["moge"]["intermediate_layers"]),
    }
    states = {
        part: {name.replace(f"state.{part}.", "state."): x for name, x in tensors.items() if name.startswith(f"state.{part}.")}
        for part in make
    }
    images = {"dino": tensors["in.dino.image"], "moge": tensors["in.moge.image_14"]}
    return {part: (case_dino.module_of(make[part], states[part]), images[part]) for part in make}


def _taken(kind: type, config: dict) -> DinoV2Config:
    """The fields that describe the model; a file's config also tells how the file was made."""
    return kind(**{field.name: config[field.name] for field in fields(kind) if field.name in config})


def compute(tensors: Tensors, config: dict, precision: str = "float32", products_only: bool = True) -> dict[str, dict]:
    """What each part returns, compiled in a precision."""
    options = {"precision": precision, "products_only": products_only, "check": False}
    found = {}
    for part, (module, image) in modules_of(tensors, config).items():
        component = port_component(module, (torch.from_numpy(image),), part, **options)
        found[part] = {name: np.asarray(x) for name, x in component(image).items()}
    return found


def run(tensors: Tensors, config: dict) -> Tensors:
    found = compute(tensors, config)
    return {f"{where}.{part}.{name}": x for part, out in found.items() for name, x in out.items() for where in ("mid", "out")}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    _, part, tensor = name.split(".")
    sizes = _taken(DinoV2Config, config[part])
    image = tensors["mid.dino.preprocessed_image" if part == "dino" else "in.moge.image_14"]
    tokens = 1 + sizes.num_register_tokens + image[0, 0].size // sizes.patch_size**2
    if tensor == "preprocessed_image":
        return case_dino.RESIZED
    blocks = int(tensor.removeprefix("block")) + 1 if tensor.startswith("block") else sizes.depth
    start = case_dino.RESIZED + 3 * sizes.patch_size**2 + 2 * sizes.stored_grid
    return start + blocks * case_dino.block_depth(sizes.embed_dim, sizes.num_heads, sizes.hidden, tokens)


def scale(name: str, tensors: Tensors, config: dict) -> float | None:
    """Logits are sums of terms as large as the common part of the keys: they cancel in the softmax, what is rounded does not."""
    _, part, tensor = name.split(".")
    return None if tensor == "preprocessed_image" else config[part]["outliers"]["key"] / np.sqrt(_head_dim(config[part]))


def _head_dim(config: dict) -> int:
    return config["embed_dim"] // config["num_heads"]


CASE = Case(run, depth, scale)
