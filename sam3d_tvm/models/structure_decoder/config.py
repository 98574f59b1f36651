"""Sizes of the sparse-structure decoder."""

from dataclasses import dataclass

from sam3d_tvm.checks import check_choice, check_size

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
