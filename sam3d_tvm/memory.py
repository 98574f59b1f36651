"""How much memory each stage of a pipeline takes: weights, which are known, and what grows with tokens and voxels."""

from collections.abc import Mapping

from sam3d_tvm.config import PipelineConfig
from sam3d_tvm.models import MODELS

TYPICAL_VOXELS = 16_000  # of an object at 64^3
BASE = 640 << 20  # bytes of Python, TVM and numpy with a photo of a few megapixels
FLOAT = 4


def estimate(config: PipelineConfig, weights: Mapping[str, int], voxels: int, stage1_only: bool = False) -> dict[str, int]:
    """Bytes that each stage takes at its peak, by the name of its model. `weights`: bytes of each model."""
    return {
        name: BASE + weights.get(name, 0) + FLOAT * MODELS[name].memory(model, config, voxels)
        for name, model in config.models.items()
        if MODELS[name].stage == 1 or not stage1_only
    }
