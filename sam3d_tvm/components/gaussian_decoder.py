"""The Gaussian decoder: from the latents of voxels to the raw features of their Gaussians.

    forward(feats float32 [n, latent_channels], coords int32 [n, 4]) -> float32 [n, out_channels]

`sam3d_tvm.splat.gaussians` makes Gaussians of the features.
"""

from dataclasses import dataclass, replace

import numpy as np
from tvm.relax.frontend.nn import spec

from sam3d_tvm.checks import check_choice
from sam3d_tvm.components.blocks import Record, ignore
from sam3d_tvm.components.slat_decoder import SlatDecoderConfig, SlatTransformer, checked_component, checked_latents
from sam3d_tvm.components.slat_weights import seeded_arrays, shapes_of
from sam3d_tvm.splat.gaussians import LR, Representation
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.weights import LazyArray
from sparse_ops.nn import LayerNorm, Linear, SparseTensor, Tensor

FINAL_NORM_EPS = 1e-5
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


SEEDED_FEATURES = {"_opacity": 4.0, "_scaling": 1.0}  # on average
SEEDED_GAIN = 0.1  # of all features but colours
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


class GaussianModel(SlatTransformer):
    """The model. Its parameters have the names of the upstream checkpoint, whose `offset_perturbation` is none of them."""

    def __init__(self, config: GaussianDecoderConfig):
        super().__init__(config)
        self.final_norm = LayerNorm(config.model_channels, affine=False, eps=FINAL_NORM_EPS)
        self.out_layer = Linear(config.model_channels, config.out_channels)

    def forward(self, feats: Tensor, coords: Tensor, record: Record = ignore) -> Tensor:
        """feats [N, latent_channels], coords int32 [N, 4] -> [N, out_channels]."""
        h = self.final_norm(self.transform(SparseTensor.of(feats, coords), record))
        record("before_out_layer", h.feats)
        return self.out_layer(h).feats

    def specs(self) -> dict[str, spec.MethodSpec]:
        """The function with the types of its arguments, as `export_tvm` takes it."""
        types = [spec.Tensor(["n", self.config.latent_channels], "float32"), spec.Tensor(["n", 4], "int32")]
        return {"forward": spec.MethodSpec(self.forward, ["feats", "coords"], types, "plain", "none")}


def parameter_shapes(config: GaussianDecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the compiled module."""
    return shapes_of(GaussianModel(config))


def seeded_state(config: GaussianDecoderConfig, seed: int = 0) -> dict[str, LazyArray]:
    """Random parameters, see `slat_weights.seeded_arrays`; with them Gaussians are opaque and fill the gaps between voxels."""
    layout = config.representation.layout
    gain, bias = np.full((config.out_channels, 1), SEEDED_GAIN), np.zeros(config.out_channels)
    gain[layout["_features_dc"]] = 1
    for name, value in SEEDED_FEATURES.items():
        bias[layout[name]] = value
    return seeded_arrays(parameter_shapes(config), seed, {"out_layer.weight": gain}, {"out_layer.bias": bias})


class GaussianDecoder:
    """Runs a compiled `GaussianModel` of the same config. Raises ValueError for a component of other sizes."""

    def __init__(self, component: Component, config: GaussianDecoderConfig):
        self.component, self.config = checked_component(component, config), config

    def __call__(self, coords, feats) -> np.ndarray:
        """Raw features float32 [N, out_channels] of the voxels coords int32 [N, 4] with latents feats float32
        [N, latent_channels], numpy, torch or TVM. Raises ValueError as `checked_latents`."""
        coords, feats = checked_latents(coords, feats, self.config)
        return self.component(feats, coords)
