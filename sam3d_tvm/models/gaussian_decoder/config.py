"""Sizes of the Gaussian decoder."""

from dataclasses import dataclass, replace

from sam3d_tvm.checks import check_choice
from sam3d_tvm.models.slat_decoder import SlatDecoderConfig
from sam3d_tvm.splat.gaussians import LR, Representation

REPRESENTATION = {  # what SAM-3D-Objects was trained with, but for the number of Gaussians
    "lr": LR,
    "perturb_offset": True,
    "voxel_size": 1.5,
    "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 0.0009,
    "scaling_bias": 0.004,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}


@dataclass(frozen=True)
class GaussianDecoderConfig(SlatDecoderConfig):
    """As `SlatDecoderConfig`; `representation_config` has the names and values of `Representation.from_dict`."""

    def __post_init__(self):
        super().__post_init__()
        Representation.from_dict(self.representation_config)

    @property
    def representation(self) -> Representation:
        """How the features become Gaussians."""
        return Representation.from_dict(self.representation_config)

    @property
    def out_channels(self) -> int:
        """Raw features of a voxel."""
        return self.representation.channels


FULL = GaussianDecoderConfig(
    resolution=64,
    model_channels=768,
    latent_channels=8,
    num_blocks=12,
    representation_config=REPRESENTATION | {"num_gaussians": 32},
    num_heads=12,
)
PRESETS = {
    # For tests: compiles and runs in seconds.
    "tiny": replace(
        FULL, model_channels=48, num_blocks=2, num_heads=2, representation_config=REPRESENTATION | {"num_gaussians": 4}
    ),
    # The sizes of SAM-3D-Objects, with 32 Gaussians a voxel, and with 4.
    "full": FULL,
    "full_4": replace(FULL, representation_config=REPRESENTATION | {"num_gaussians": 4}),
}


def preset(name: str) -> GaussianDecoderConfig:
    """A config of `PRESETS`; ValueError for another name."""
    check_choice("preset", name, PRESETS)
    return PRESETS[name]
