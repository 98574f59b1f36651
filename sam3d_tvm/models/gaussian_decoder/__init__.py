"""The Gaussian decoder: latents of voxels to the raw features of their Gaussians."""

from sam3d_tvm.models.gaussian_decoder.config import PRESETS, GaussianDecoderConfig, preset
from sam3d_tvm.models.gaussian_decoder.network import GaussianModel
from sam3d_tvm.models.gaussian_decoder.random_weights import parameter_shapes, seeded_state
from sam3d_tvm.models.gaussian_decoder.run import GaussianDecoder

__all__ = [
    "PRESETS",
    "GaussianDecoder",
    "GaussianDecoderConfig",
    "GaussianModel",
    "parameter_shapes",
    "preset",
    "seeded_state",
]
