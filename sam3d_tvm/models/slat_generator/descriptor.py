"""The generator of structured latents in a pipeline."""

from collections.abc import Iterable, Mapping
from typing import Any

from sam3d_tvm.models.descriptor import Model, Place
from sam3d_tvm.models.slat_generator.config import PRESETS, SlatConfig
from sam3d_tvm.models.slat_generator.network import slat_component
from sam3d_tvm.models.slat_generator.random_weights import parameter_shapes, seeded_state
from sam3d_tvm.models.slat_generator.run import SlatGenerator
from sam3d_tvm.models.transformer_memory import block_numbers, context_numbers
from sam3d_tvm.models.upstream import GENERATOR, TDFY, without


def _fits(name: str, config: SlatConfig, pipeline: Any) -> Iterable[tuple[str, Any, Any]]:
    yield f"{name}.cond_channels", config.cond_channels, pipeline.slat_condition_embedder.channels
    yield f"{name}.resolution", config.resolution, pipeline.ss_decoder.grid


def _memory_of_view(config: SlatConfig, pipeline: Any) -> int:
    return context_numbers(config.num_blocks, pipeline.slat_condition_embedder.tokens, config.model_channels)


def _memory(config: SlatConfig, pipeline: Any, voxels: int) -> int:
    return _memory_of_view(config, pipeline) + block_numbers(voxels, config.model_channels)


def _read(values: Mapping[str, Any]) -> SlatConfig:
    return SlatConfig.from_dict(without(values, "condition_embedder", "pretrained_ckpt_path", "use_checkpoint"))


DESCRIPTORS = {
    "slat_generator": Model(
        config=SlatConfig,
        from_json=SlatConfig.from_dict,
        presets={
            "tiny": SlatConfig(64, 8, 24, 24, 8, num_blocks=2, num_heads=2, io_block_channels=(10,), qk_rms_norm=True),
            "full": PRESETS["full"],
        },
        stage=2,
        fits=_fits,
        shapes=parameter_shapes,
        random_weights=seeded_state,
        compile=slat_component,
        open=lambda component, config: SlatGenerator(config, component),
        memory=_memory,
        memory_of_view=_memory_of_view,
        integers=True,
        place=Place("slat_generator", *GENERATOR),
        targets={TDFY + "structured_latent_flow.SLatFlowModelTdfyWrapper": _read},
    )
}
