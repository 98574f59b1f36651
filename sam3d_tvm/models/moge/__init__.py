"""The depth model: a photo -> a point of its scene for every pixel."""

from sam3d_tvm.models.moge.config import PRESETS, MogeConfig
from sam3d_tvm.models.moge.run import DepthModel

__all__ = ["PRESETS", "DepthModel", "MogeConfig"]
