"""The structure flow in a pipeline."""

from collections.abc import Iterable
from typing import Any

from sam3d_tvm.models.descriptor import Model, Place
from sam3d_tvm.models.structure_flow.checkpoint import TARGETS
from sam3d_tvm.models.structure_flow.config import PRESETS, SHAPE, StructureFlowConfig
from sam3d_tvm.models.structure_flow.network import NETWORK
from sam3d_tvm.models.structure_flow.random_weights import seeded_state
from sam3d_tvm.models.structure_flow.run import StructureFlow
from sam3d_tvm.models.transformer_memory import block_numbers, context_numbers
from sam3d_tvm.models.upstream import GENERATOR


def _fits(name: str, config: StructureFlowConfig, pipeline: Any) -> Iterable[tuple[str, Any, Any]]:
    yield f"{name}.cond_channels", config.cond_channels, pipeline.ss_condition_embedder.channels


def _memory_of_view(config: StructureFlowConfig, pipeline: Any) -> int:
    return context_numbers(config.num_blocks, pipeline.ss_condition_embedder.tokens, config.model_channels)


def _memory(config: StructureFlowConfig, pipeline: Any, voxels: int) -> int:
    return _memory_of_view(config, pipeline) + block_numbers(config.latent_mapping[SHAPE].token_len, config.model_channels)


def _example(size: str) -> Any:
    from sam3d_tvm.models.structure_flow import network_torch

    return network_torch.example(size)


DESCRIPTORS = {
    "ss_generator": Model(
        config=StructureFlowConfig,
        from_json=lambda value: StructureFlowConfig(**value),
        presets={
            "tiny": StructureFlowConfig(24, 24, num_blocks=2, num_heads=2, mlp_ratio=2),
            "full": PRESETS["full"],
        },
        stage=1,
        fits=_fits,
        shapes=NETWORK.shapes,
        random_weights=seeded_state,
        compile=NETWORK.compile,
        options=lambda pipeline: {"cond_tokens": pipeline.ss_condition_embedder.tokens},
        open=StructureFlow,
        memory=_memory,
        memory_of_view=_memory_of_view,
        integers=True,
        place=Place("ss_generator", *GENERATOR),
        targets=TARGETS,
        examples={"structure_flow": _example},
    )
}
