"""Runs the compiled sparse-structure decoder: from the shape tokens of the first stage to the voxels of an object."""

import numpy as np

from sam3d_tvm.checks import check_size
from sam3d_tvm.models.structure_decoder.config import StructureDecoderConfig
from sam3d_tvm.models.structure_decoder.voxels import MAX_VOXELS, downsample, occupied_coords, prune
from sparse_ops.deploy.component import Component
from sparse_ops.eager.arrays import as_kind, as_tensor


class StructureDecoder:
    """Runs a compiled `network_torch.StructureDecoderModel`, one batch element after another.

    `component` takes tokens float32 [1, R^3, C] to logits float32 [1, 1, G, G, G], with R, C and G those of `config`: latent
    resolution, latent channels, decoded grid. Raises ValueError for a component of other sizes.
    """

    def __init__(self, component: Component, config: StructureDecoderConfig):
        expected = (1, config.tokens, config.latent_channels)
        given = [spec.shape for spec in component["forward"].spec.inputs]
        if given != [expected]:
            raise ValueError(f"component: expected one input {list(expected)} as the config says, given {given}")
        self.component, self.config = component, config

    def logits(self, shape_latent) -> np.ndarray:
        """Occupancy of every cell, float32 [B, 1, G, G, G]: above 0 where there is matter.

        shape_latent float32 [B, R^3, C], cell (x, y, z) being token (x R + y) R + z. ValueError for another shape or dtype.
        """
        shape = (None, self.config.tokens, self.config.latent_channels)
        latent = as_kind(as_tensor(shape_latent, "shape_latent", ("float32",), shape), "numpy")
        logits = np.empty((len(latent), 1, *[self.config.grid] * 3), np.float32)
        for element in range(len(latent)):
            logits[element] = self.component(latent[element : element + 1])[0]
        return logits

    def coords(
        self, shape_latent, threshold: float = 0.0, prune_distance: int = 1, max_voxels: int = MAX_VOXELS, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The voxels for the second stage, int32 [N, 4], and the factors int64 [B] by which the scale of the poses grows.

        Those whose logit is above `threshold`, without those that are buried deeper than `prune_distance` (0 keeps all), on a
        coarser grid where they are more than `max_voxels`: see `voxels`. Raises ValueError as those functions do.
        """
        check_size("prune_distance", prune_distance, 0)
        logits = self.logits(shape_latent)
        coords = occupied_coords(logits, threshold)
        if prune_distance:
            coords = prune(coords, prune_distance)
        return downsample(coords, max_voxels, batch_size=len(logits), seed=seed)
