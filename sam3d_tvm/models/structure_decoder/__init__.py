"""The sparse-structure decoder: the shape tokens of the first stage to the voxels of an object."""

from sam3d_tvm.models.structure_decoder.config import PRESETS, StructureDecoderConfig, preset
from sam3d_tvm.models.structure_decoder.run import StructureDecoder

__all__ = ["PRESETS", "StructureDecoder", "StructureDecoderConfig", "preset"]
