"""The sparse-structure decoder: from the shape tokens of the first stage to the voxels of an object."""

from dataclasses import dataclass

import numpy as np

from sam3d_tvm.checks import check_choice, check_size
from sparse_ops.deploy.component import Component
from sparse_ops.eager.arrays import as_kind, as_tensor

from .voxels import MAX_VOXELS, downsample, occupied_coords, prune

UPSCALE = 2  # between two levels, along every axis


@dataclass(frozen=True)
class StructureDecoderConfig:
    """Sizes of the decoder, named as upstream names them.

    The latent grid has `resolution` cells along every axis; `channels` has one entry for each level, the latent one first, and
    every further one doubles the resolution. `num_res_blocks` of a level, `num_res_blocks_middle` before the first.

    Raises ValueError for a size that is no integer of at least 1, of blocks at least 0.
    """

    resolution: int
    latent_channels: int
    channels: tuple[int, ...]
    num_res_blocks: int = 2
    num_res_blocks_middle: int = 2

    def __post_init__(self):
        object.__setattr__(self, "channels", tuple(self.channels))
        check_size("resolution", self.resolution, 1)
        check_size("latent_channels", self.latent_channels, 1)
        check_size("number of channels", len(self.channels), 1)
        for i, channels in enumerate(self.channels):
            check_size(f"channels[{i}]", channels, 1)
        check_size("num_res_blocks", self.num_res_blocks, 0)
        check_size("num_res_blocks_middle", self.num_res_blocks_middle, 0)

    @property
    def tokens(self) -> int:
        """Cells of the latent grid."""
        return self.resolution**3

    @property
    def grid(self) -> int:
        """Cells of the decoded grid along every axis."""
        return self.resolution * UPSCALE ** (len(self.channels) - 1)


PRESETS = {
    # For tests: compiles and runs in seconds.
    "tiny": StructureDecoderConfig(resolution=4, latent_channels=8, channels=(32, 16, 8)),
    # The sizes of SAM-3D-Objects.
    "full": StructureDecoderConfig(resolution=16, latent_channels=8, channels=(512, 128, 32)),
}


def preset(name: str) -> StructureDecoderConfig:
    """A config of `PRESETS`; ValueError for another name."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name]


class StructureDecoder:
    """Runs a compiled `sam3d_tvm.torch_modules.structure_decoder.StructureDecoder`, one batch element after another.

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
