"""The mesh decoder: latents of voxels to the features of a mesh."""

from sam3d_tvm.models.mesh_decoder.config import PRESETS, MeshDecoderConfig, preset
from sam3d_tvm.models.mesh_decoder.network import MeshModel, SubdivideBlock
from sam3d_tvm.models.mesh_decoder.random_weights import parameter_shapes, seeded_state
from sam3d_tvm.models.mesh_decoder.run import MeshDecoder

__all__ = [
    "PRESETS",
    "MeshDecoder",
    "MeshDecoderConfig",
    "MeshModel",
    "SubdivideBlock",
    "parameter_shapes",
    "preset",
    "seeded_state",
]
