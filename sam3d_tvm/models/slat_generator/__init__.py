"""The generator of structured latents: noise on active voxels to their latents."""

from sam3d_tvm.models.slat_generator.config import ALL_SAVINGS, PRESETS, Savings, SlatConfig, preset
from sam3d_tvm.models.slat_generator.network import compile_model, slat_component
from sam3d_tvm.models.slat_generator.random_weights import check_state, parameter_shapes, seeded_state
from sam3d_tvm.models.slat_generator.run import TIME_SCALE, Modulation, SlatGenerator, SlatPlan

__all__ = [
    "ALL_SAVINGS",
    "PRESETS",
    "TIME_SCALE",
    "Modulation",
    "Savings",
    "SlatConfig",
    "SlatGenerator",
    "SlatPlan",
    "check_state",
    "compile_model",
    "parameter_shapes",
    "preset",
    "seeded_state",
    "slat_component",
]
