"""The mesh decoder in a pipeline."""

from typing import Any

from sam3d_tvm.models.descriptor import Model, Place
from sam3d_tvm.models.mesh_decoder.config import PRESETS, MeshDecoderConfig
from sam3d_tvm.models.mesh_decoder.network import MeshModel
from sam3d_tvm.models.mesh_decoder.random_weights import parameter_shapes, seeded_state
from sam3d_tvm.models.mesh_decoder.run import MeshDecoder
from sam3d_tvm.models.slat_decoder import compile_decoder, fits_latents, read_values
from sam3d_tvm.models.transformer_memory import block_numbers
from sam3d_tvm.models.upstream import TDFY

CHILDREN = 64  # cells of the mesh to a voxel
CELL = 1.8  # times the features of a cell: those of two layers, and what the extraction takes


def _memory(config: MeshDecoderConfig, pipeline: Any, voxels: int) -> int:
    fine = CHILDREN * voxels * (config.out_channels + 2 * config.widths[-1])
    return int(CELL * fine) + block_numbers(voxels, config.model_channels)


DESCRIPTORS = {
    "slat_decoder_mesh": Model(
        config=MeshDecoderConfig,
        from_json=MeshDecoderConfig.from_dict,
        presets={"tiny": PRESETS["tiny"], "full": PRESETS["full"]},
        stage=2,
        optional=True,
        fits=fits_latents,
        shapes=parameter_shapes,
        random_weights=seeded_state,
        compile=compile_decoder(MeshModel),
        open=MeshDecoder,
        memory=_memory,
        integers=True,
        place=Place("slat_decoder_mesh"),
        targets={TDFY + "structured_latent_vae.decoder_mesh.SLatMeshDecoderTdfyWrapper": read_values(MeshDecoderConfig)},
    )
}
