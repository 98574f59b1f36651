"""The depth model: a photo -> a point of its scene for every pixel."""

from sam3d_tvm.models.moge.config import PRESETS, MogeConfig

__all__ = ["PRESETS", "MogeConfig"]
