"""`dino`: the embedder around a DINOv2, on images and on a mask, in both forms of its features.

`mid.*` are inner results on the way to `out.tokens`, those of the first image where their name ends so. A file may have images
or masks alone.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch
from torch.export import Dim

from sam3d_tvm.models.condition_embedder import DinoConfig
from sam3d_tvm.models.condition_embedder.dinov2_torch import Dino
from sparse_ops.deploy.from_torch import port_component
from tests.golden import depths
from tests.golden.case import Case, Tensors


class TwoKinds(Dino):
    """An embedder that is exported for images and for masks."""

    stages_of_mask = Dino.stages


def config_of(config: dict) -> DinoConfig:
    """The fields that describe the model; a file's config also tells how the file was made."""
    return DinoConfig(**{field.name: config[field.name] for field in fields(DinoConfig) if field.name in config})


def module_of(make: Callable[[], torch.nn.Module], tensors: Tensors) -> torch.nn.Module:
    """The module that `make` builds, with the parameters of the file."""
    with torch.device("meta"):
        module = make()
    state = {
        name.removeprefix("state."): torch.from_numpy(value) for name, value in tensors.items() if name.startswith("state.")
    }
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False).eval()


def run(tensors: Tensors, config: dict) -> Tensors:
    sizes = config_of(config)
    methods = {name: method for name, method in (("image", "stages"), ("mask", "stages_of_mask")) if f"in.{name}" in tensors}
    images = {method: tensors[f"in.{name}"] for name, method in methods.items()}
    examples = {method: (torch.from_numpy(image),) for method, image in images.items()}
    compiled = port_component(module_of(partial(TwoKinds, sizes), tensors), examples, "dino")
    inner = {method: compiled[method](image) for method, image in images.items()}
    last = f"block{sizes.depth - 1}"

    raw = module_of(partial(Dino, replace(sizes, prenorm_features=True)), tensors)
    width = next(iter(inner.values()))[last].shape[1:]
    raw = port_component(raw, {"features": (torch.zeros(2, *width),)}, "dino", dynamic={"features": ({0: Dim.DYNAMIC},)})

    out = {}
    for name, method in methods.items():
        suffix, found = "" if name == "image" else f"_{name}", inner[method]
        out |= {f"out.tokens{suffix}": found["tokens"], f"out.tokens{suffix}_prenorm": raw["features"](found[last])}
    found = next(iter(inner.values()))
    out |= {f"mid.{name}": value for name, value in found.items()}
    return out | {"mid.preprocessed_image_first": found["preprocessed_image"][:1], "mid.x_prenorm": found[last]}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    found = depths_of(config_of(config))
    return found["tokens" if name.startswith("out.") else name.removeprefix("mid.")]


# Two products and a sum along both axes, and the share of a pixel: a compiled resize rounds positions as PyTorch does.
RESIZED = 8.0


def depths_of(config: DinoConfig, preprocess: float = RESIZED) -> dict[str, float]:
    """Additions behind every tensor, along the model, from pixels that have `preprocess` behind them."""
    positions = 1.0 if config.grid == config.stored_grid else 2.0 * config.stored_grid  # two axes
    patches = preprocess + depths.conv(3, config.patch_size**2)
    so_far = patches + positions
    found = {
        "preprocessed_image": preprocess,
        "preprocessed_image_first": preprocess,
        "pos_embed_interpolated": positions,
        "patch_embed": patches,
        "tokens_in": so_far,
    }
    for i in range(config.depth):
        so_far += block_depth(
            config.embed_dim, config.num_heads, config.hidden, 1 + config.num_register_tokens + config.grid**2
        )
        found[f"block{i}"] = so_far
    return found | {"x_prenorm": so_far, "tokens": so_far + depths.layer_norm(config.embed_dim)}


def block_depth(channels: int, heads: int, hidden: int, tokens: int) -> float:
    """Additions in one transformer block."""
    attention = depths.linear(channels) + depths.attention(channels // heads, tokens) + depths.linear(channels)
    return 2 * depths.layer_norm(channels) + attention + depths.linear(channels) + depths.linear(hidden)


CASE = Case(run, depth)
