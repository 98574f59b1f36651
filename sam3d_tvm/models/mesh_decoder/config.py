"""Sizes of the mesh decoder."""

from dataclasses import dataclass

import numpy as np

from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.models.slat_decoder import SlatDecoderConfig

NARROWING = (4, 2)  # by which every subdivision divides the channels
CORNERS = 8  # of a cube
CUBE_CHANNELS = CORNERS + CORNERS * 3 + 21  # distance and deformation of every corner, and weights of the cube
COLOR_CHANNELS = CORNERS * 6  # colour and normal of every corner


@dataclass(frozen=True)
class MeshDecoderConfig(SlatDecoderConfig):
    """As `SlatDecoderConfig`; `representation_config` has `use_color`; group norms have `num_groups` groups."""

    num_groups: int = 32

    def __post_init__(self):
        super().__post_init__()
        check_size("num_groups", self.num_groups, 1)
        if self.model_channels % (narrow := self.num_groups * np.prod(NARROWING)):
            raise ValueError(
                f"model_channels: expected a multiple of {narrow}, so that {self.num_groups} groups divide the narrowest "
                f"layer, given {self.model_channels}"
            )
        if set(self.representation_config) != {"use_color"} or not isinstance(self.representation_config["use_color"], bool):
            raise ValueError(f"representation_config: expected use_color, a bool, given {dict(self.representation_config)}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, the coarsest first."""
        return (self.model_channels, *(self.model_channels // int(n) for n in np.cumprod(NARROWING)))

    @property
    def out_channels(self) -> int:
        """Features of a fine voxel."""
        return CUBE_CHANNELS + COLOR_CHANNELS * self.representation_config["use_color"]

    @property
    def out_resolution(self) -> int:
        """Bound of the fine coordinates."""
        return self.resolution * 2 ** len(NARROWING)


PRESETS = {
    # For tests: compiles and runs in seconds.
    "tiny": MeshDecoderConfig(
        resolution=64,
        model_channels=64,
        latent_channels=8,
        num_blocks=2,
        representation_config={"use_color": True},
        num_heads=2,
        num_groups=4,
    ),
    # The sizes of SAM-3D-Objects.
    "full": MeshDecoderConfig(
        resolution=64,
        model_channels=768,
        latent_channels=8,
        num_blocks=12,
        representation_config={"use_color": True},
        num_heads=12,
    ),
}


def preset(name: str) -> MeshDecoderConfig:
    """A config of `PRESETS`; ValueError for another name."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name]
