"""The condition embedder: DINOv2 on images and masks, patches of point maps, and what fuses their tokens."""

from sam3d_tvm.models.condition_embedder.config import (
    DINO_PRESETS,
    FUSER_PRESETS,
    POINT_PATCH_PRESETS,
    DinoConfig,
    Embedder,
    EmbedderFuserConfig,
    PointPatchConfig,
    fuser_config,
)
from sam3d_tvm.models.condition_embedder.run import ConditionEmbedder

__all__ = [
    "DINO_PRESETS",
    "FUSER_PRESETS",
    "POINT_PATCH_PRESETS",
    "ConditionEmbedder",
    "DinoConfig",
    "Embedder",
    "EmbedderFuserConfig",
    "PointPatchConfig",
    "fuser_config",
]
