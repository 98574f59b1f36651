"""Runs a compiled Gaussian decoder."""

import numpy as np

from sam3d_tvm.models.gaussian_decoder.config import GaussianDecoderConfig
from sam3d_tvm.models.slat_decoder import checked_component, checked_latents
from sparse_ops.deploy.component import Component


class GaussianDecoder:
    """Runs a compiled `GaussianModel` of the same config. Raises ValueError for a component of other sizes."""

    def __init__(self, component: Component, config: GaussianDecoderConfig):
        self.component, self.config = checked_component(component, config), config

    def __call__(self, coords, feats) -> np.ndarray:
        """Raw features float32 [N, out_channels] of the voxels coords int32 [N, 4] with latents feats float32
        [N, latent_channels], numpy, torch or TVM. Raises ValueError as `checked_latents`."""
        coords, feats = checked_latents(coords, feats, self.config)
        return self.component(feats, coords)
