"""The depth model in a pipeline: it runs first, on the whole photo."""

from typing import Any

from sam3d_tvm.models.descriptor import Model, OwnFile
from sam3d_tvm.models.moge import checkpoint
from sam3d_tvm.models.moge.config import AREA, PRESETS, UV, MogeConfig
from sam3d_tvm.models.moge.network import NETWORK
from sam3d_tvm.models.moge.random_weights import seeded_state
from sam3d_tvm.models.moge.run import DepthModel
from sam3d_tvm.models.transformer_memory import block_numbers

MAPS = 3  # of features of the last size, at a time


def _memory(config: MogeConfig, pipeline: Any, voxels: int) -> int:
    tokens, channels = config.num_tokens_range[1], config.encoder.embed_dim
    features = config.intermediate_layers * tokens * channels
    return block_numbers(tokens + 1, channels) + features + MAPS * tokens * AREA * (config.dim_upsample[-1] + UV)


def _example(size: str) -> Any:
    from sam3d_tvm.models.moge import example_torch

    return example_torch.example(size)


DESCRIPTORS = {
    "depth_model": Model(
        config=MogeConfig,
        from_json=MogeConfig.from_json,
        presets=PRESETS,
        stage=1,
        optional=True,
        shapes=NETWORK.shapes,
        random_weights=lambda config, seed: seeded_state(config, NETWORK.shapes(config), seed),
        compile=NETWORK.compile,
        open=DepthModel,
        memory=_memory,
        place=OwnFile(
            "depth_model",
            checkpoint.find,
            checkpoint.find_given,
            checkpoint.read,
            "going on without it, so that the structure does not see the points of a photo, and the pose is in units of the "
            "object; download it, say where it is by --depth-model (depth_model), or give a point map",
        ),
        targets=checkpoint.TARGETS,
        examples={"moge": _example},
    )
}
