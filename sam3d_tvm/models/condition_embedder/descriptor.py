"""The condition embedder in a pipeline: that of the structure, and that of the structured latents."""

from dataclasses import replace
from typing import Any

from sam3d_tvm.models.condition_embedder.checkpoint import TARGETS
from sam3d_tvm.models.condition_embedder.config import (
    FUSER_PRESETS,
    DinoConfig,
    EmbedderFuserConfig,
    PointPatchConfig,
    fuser_config,
)
from sam3d_tvm.models.condition_embedder.network import NETWORK
from sam3d_tvm.models.condition_embedder.run import ConditionEmbedder
from sam3d_tvm.models.descriptor import Model, Place
from sam3d_tvm.models.random_weights import seeded_arrays
from sam3d_tvm.models.transformer_memory import block_numbers
from sam3d_tvm.models.upstream import CONDITION

PIXEL = 2  # times the features of a pixel of a point map
_TINY_DINO = DinoConfig(embed_dim=24, depth=2, num_heads=2, input_size=56, img_size=56)


def _memory(config: EmbedderFuserConfig, pipeline: Any, voxels: int) -> int:
    tokens = max(part.model.tokens for part in config.embedders)
    points = [part.model for part in config.embedders if part.kind == "pointmap"]
    pixels = sum(PIXEL * model.input_size**2 * model.embed_dim for model in points)
    return config.tokens * config.channels + block_numbers(tokens, config.channels) + pixels


def _dinov2(size: str) -> Any:
    from sam3d_tvm.models.condition_embedder import dinov2_torch

    return dinov2_torch.example(size)


def _point_patch_embed(size: str) -> Any:
    from sam3d_tvm.models.condition_embedder import point_patch_embed_torch

    return point_patch_embed_torch.example(size)


def _embedder_fuser(size: str) -> Any:
    from sam3d_tvm.models.condition_embedder import network_torch

    return network_torch.example(size)


_STRUCTURE = Model(
    config=EmbedderFuserConfig,
    from_json=EmbedderFuserConfig.from_json,
    presets={
        "tiny": fuser_config(_TINY_DINO, PointPatchConfig(embed_dim=16, input_size=32)),
        "full": FUSER_PRESETS["ss"]["full"],
    },
    stage=1,
    shapes=NETWORK.shapes,
    random_weights=lambda config, seed: seeded_arrays(NETWORK.shapes(config), seed),
    compile=NETWORK.compile,
    open=ConditionEmbedder,
    memory=_memory,
    place=Place("ss_generator", *CONDITION),
    targets=TARGETS,
    examples={"dinov2": _dinov2, "point_patch_embed": _point_patch_embed, "embedder_fuser": _embedder_fuser},
)
DESCRIPTORS = {
    "ss_condition_embedder": _STRUCTURE,
    "slat_condition_embedder": replace(
        _STRUCTURE,
        presets={
            "tiny": fuser_config(replace(_TINY_DINO, prenorm_features=True)),
            "full": FUSER_PRESETS["slat"]["full"],
        },
        stage=2,
        place=Place("slat_generator", *CONDITION),
        examples={},  # those above
    ),
}
