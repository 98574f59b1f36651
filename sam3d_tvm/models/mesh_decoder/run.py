"""Runs a compiled mesh decoder."""

import numpy as np

from sam3d_tvm.models.mesh_decoder.config import MeshDecoderConfig
from sam3d_tvm.models.slat_decoder import checked_component, checked_latents
from sparse_ops.deploy.component import Component


class MeshDecoder:
    """Runs a compiled `MeshModel` of the same config. Raises ValueError for a component of other sizes."""

    def __init__(self, component: Component, config: MeshDecoderConfig):
        self.component, self.config = checked_component(component, config), config

    def __call__(self, coords, feats) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 [64 N, out_channels] and coordinates int32 [64 N, 4], from 0 to out_resolution - 1, of the cubes in
        the voxels coords int32 [N, 4] with latents feats float32 [N, latent_channels], numpy, torch or TVM.

        Raises ValueError as `checked_latents`.
        """
        coords, feats = checked_latents(coords, feats, self.config)
        batch = int(coords[:, 0].max(initial=0)) + 1
        offsets = np.searchsorted(coords[:, 0], np.arange(batch + 1)).astype(np.int32)
        return tuple(self.component(feats, coords, offsets))
