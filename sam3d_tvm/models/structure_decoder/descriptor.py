"""The structure decoder in a pipeline."""

from collections.abc import Iterable
from typing import Any

from sam3d_tvm.models.descriptor import Model, Place
from sam3d_tvm.models.structure_decoder.checkpoint import TARGETS, SizesWithoutResolution, complete
from sam3d_tvm.models.structure_decoder.config import PRESETS, StructureDecoderConfig
from sam3d_tvm.models.structure_decoder.network import NETWORK
from sam3d_tvm.models.structure_decoder.random_weights import seeded_state
from sam3d_tvm.models.structure_decoder.run import StructureDecoder
from sam3d_tvm.models.structure_flow.config import SHAPE

GRIDS = 6  # of the finest features, at a time


def _fits(name: str, config: StructureDecoderConfig, pipeline: Any) -> Iterable[tuple[str, Any, Any]]:
    shape = pipeline.ss_generator.latent_mapping[SHAPE]
    yield f"{name}.latent_channels", config.latent_channels, shape.in_channels
    yield f"tokens of {name}", config.tokens, shape.token_len


def _example(size: str) -> Any:
    from sam3d_tvm.models.structure_decoder import network_torch

    return network_torch.example(size)


DESCRIPTORS = {
    "ss_decoder": Model(
        config=StructureDecoderConfig,
        from_json=lambda value: StructureDecoderConfig(**value),
        presets={
            "tiny": StructureDecoderConfig(16, 8, channels=(12, 8, 8), num_res_blocks=1, num_res_blocks_middle=1),
            "full": PRESETS["full"],
        },
        stage=1,
        fits=_fits,
        shapes=NETWORK.shapes,
        random_weights=seeded_state,
        compile=NETWORK.compile,
        open=StructureDecoder,
        memory=lambda config, pipeline, voxels: GRIDS * config.grid**3 * config.channels[-1],
        place=Place("ss_decoder"),
        targets=TARGETS,
        read_as=SizesWithoutResolution,
        complete=complete,
        examples={"structure_decoder": _example},
    )
}
