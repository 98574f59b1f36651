"""The sparse-structure flow: noise to the latent of a coarse grid, and those of the pose that belongs to it."""

from sam3d_tvm.models.structure_flow.config import PRESETS, SHAPE, StructureFlowConfig, preset
from sam3d_tvm.models.structure_flow.run import GUIDANCE, TIME_SCALE, StructureFlow, StructurePlan

__all__ = [
    "GUIDANCE",
    "PRESETS",
    "SHAPE",
    "TIME_SCALE",
    "StructureFlow",
    "StructureFlowConfig",
    "StructurePlan",
    "preset",
]
