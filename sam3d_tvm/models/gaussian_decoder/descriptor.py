"""The Gaussian decoder in a pipeline: the one of many Gaussians a voxel, and the one of few."""

from dataclasses import replace
from typing import Any

from sam3d_tvm.models.descriptor import Model, Place
from sam3d_tvm.models.gaussian_decoder.config import PRESETS, GaussianDecoderConfig
from sam3d_tvm.models.gaussian_decoder.network import GaussianModel
from sam3d_tvm.models.gaussian_decoder.random_weights import parameter_shapes, seeded_state
from sam3d_tvm.models.gaussian_decoder.run import GaussianDecoder
from sam3d_tvm.models.slat_decoder import compile_decoder, fits_latents, read_values
from sam3d_tvm.models.transformer_memory import block_numbers
from sam3d_tvm.models.upstream import TDFY
from sam3d_tvm.splat.gaussians import offset_perturbation

GAUSSIAN = 18  # times the features of a Gaussian, of which many copies are in float64


def _memory(config: GaussianDecoderConfig, pipeline: Any, voxels: int) -> int:
    return block_numbers(voxels, config.model_channels) + voxels * GAUSSIAN * config.out_channels


_MANY = Model(
    config=GaussianDecoderConfig,
    from_json=GaussianDecoderConfig.from_dict,
    presets={"tiny": replace(PRESETS["tiny"], model_channels=32, mlp_ratio=2), "full": PRESETS["full"]},
    stage=2,
    optional=True,
    fits=fits_latents,
    shapes=parameter_shapes,
    random_weights=seeded_state,
    compile=compile_decoder(GaussianModel),
    open=GaussianDecoder,
    memory=_memory,
    integers=True,
    place=Place("slat_decoder_gs"),
    targets={
        TDFY + "structured_latent_vae.decoder_gs.SLatGaussianDecoderTdfyWrapper": read_values(GaussianDecoderConfig),
    },
    offset_perturbation=lambda config: offset_perturbation(config.representation),
)
DESCRIPTORS = {
    "slat_decoder_gs": _MANY,
    "slat_decoder_gs_4": replace(
        _MANY,
        presets={"full": PRESETS["full_4"]},
        optional_in_checkpoint=True,
        place=Place("slat_decoder_gs_4"),
    ),
}
