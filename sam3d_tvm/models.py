"""The models of a pipeline, by the type of their config: how each is compiled, opened and given random weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm

from sam3d_tvm.components import gaussian_decoder, mesh_decoder, slat_generator
from sam3d_tvm.components.condition_embedder import ConditionEmbedder, EmbedderFuserConfig
from sam3d_tvm.components.gaussian_decoder import GaussianDecoder, GaussianDecoderConfig, GaussianModel
from sam3d_tvm.components.mesh_decoder import MeshDecoder, MeshDecoderConfig, MeshModel
from sam3d_tvm.components.slat_config import SlatConfig
from sam3d_tvm.components.slat_generator import SlatGenerator
from sam3d_tvm.components.slat_model import slat_component
from sam3d_tvm.components.slat_weights import seeded_arrays
from sam3d_tvm.components.structure_decoder import StructureDecoder, StructureDecoderConfig
from sam3d_tvm.components.structure_flow import StructureFlow, StructureFlowConfig
from sam3d_tvm.config import PipelineConfig
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_nn import native_component
from sparse_ops.deploy.weights import LazyArray, State


@dataclass(frozen=True)
class Model:
    """`shapes(config)` of its parameters; `compile(pipeline, config, state, name, precision, target)`; `open(component,
    config)`: what runs it; `seeded(config, seed)`: random weights."""

    shapes: Callable[[Any], Mapping[str, tuple[int, ...]]]
    compile: Callable[..., Component]
    open: Callable[[Component, Any], Any]
    seeded: Callable[[Any, int], State]


def model_of(config: Any) -> Model:
    """The model of a config."""
    return MODELS[type(config)]


def _torch_shapes(config) -> Mapping[str, tuple[int, ...]]:
    return _torch().parameter_shapes(config)


def _compile_torch(pipeline: PipelineConfig, config, state, name, precision, target) -> Component:
    tokens = pipeline.ss_condition_embedder.tokens if isinstance(config, StructureFlowConfig) else None
    return _torch().compile_component(config, state, name, precision, target, tokens)


def _torch():
    """Only to compile; ValueError where torch is not installed."""
    try:
        from sam3d_tvm.torch_modules import compile as torch_compile
    except ImportError as error:
        raise ValueError(
            f"torch: needed to compile this model, not to run it: pip install 'sam3d-tvm[torch]' ({error})"
        ) from error
    return torch_compile


def _compile_slat(pipeline: PipelineConfig, config, state, name, precision, target) -> Component:
    return slat_component(config, state, precision=precision, target=target, name=name)


def _compile_decoder(make: type) -> Callable[..., Component]:
    def compile_decoder(
        pipeline: PipelineConfig, config, state, name, precision, target: tvm.target.Target | None
    ) -> Component:
        model = make(config)
        return native_component(model, model.specs(), name, state, precision=precision, target=target)

    return compile_decoder


def _seeded_torch(config, seed: int) -> dict[str, LazyArray]:
    return seeded_arrays(_torch_shapes(config), seed)


# Random weights make noise of the structure, unless they tell where the middle is and smooth what lies around it.
SHAPE_POSITIONS = "latent_mapping.shape.pos_emb"
FLOW_GAINS = {"latent_mapping.shape.input_layer.weight": 0.1, "latent_mapping.shape.out_layer.weight": 8.0}
CONDITION_GAIN = 0.05  # so that every photo makes something
MIDDLE, RADIUS = 8.0, 0.6  # how much a cell's place weighs beside its noise; where it changes sign, in half sides of the grid
OCCUPANCY_BIAS = -0.9
DIRECTION_SEED, DECODER_SEED = 8, 2  # with these seed 0 makes a pebble
CHILDREN = 8  # of a cell, each from features of its own


def _seeded_flow(config: StructureFlowConfig, seed: int) -> dict[str, LazyArray]:
    """Random weights, of which the positions of the shape tell, beside noise, how far a cell is from the middle of the grid."""
    layers = [f"blocks.{i}.cross_attn.shape.to_out.{kind}" for i in range(config.num_blocks) for kind in ("weight", "bias")]
    state = seeded_arrays(_torch_shapes(config), seed, FLOW_GAINS | dict.fromkeys(layers, CONDITION_GAIN))
    positions = state[SHAPE_POSITIONS]

    def make() -> np.ndarray:
        tokens, channels = positions.shape
        side = np.linspace(-1, 1, round(tokens ** (1 / 3)), dtype=np.float32)
        radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(side, side, side, indexing="ij"))).reshape(-1, 1)
        direction = np.random.default_rng([seed, DIRECTION_SEED]).standard_normal((1, channels), dtype=np.float32)
        return np.asarray(positions) + np.float32(MIDDLE) * (np.float32(RADIUS) - radius) * direction

    return state | {SHAPE_POSITIONS: LazyArray(positions.shape, np.float32, make)}


def _seeded_structure_decoder(config: StructureDecoderConfig, seed: int) -> dict[str, LazyArray]:
    """Random weights across channels, a smoothing filter across space; all children of a cell begin alike."""
    window = np.float32([0.25, 0.5, 0.25])
    smooth = window[:, None, None] * window[:, None] * window  # [3, 3, 3]

    def smoothed(name: str, array: LazyArray) -> LazyArray:
        def make() -> np.ndarray:
            values = np.asarray(array)
            if name.startswith("blocks.") and ".conv." in name:  # from one resolution to the next
                values = values[: len(values) // CHILDREN].repeat(CHILDREN, axis=0)
            return values.sum((2, 3, 4), keepdims=True) * smooth if values.ndim == 5 else values

        return LazyArray(array.shape, np.float32, make)

    state = {name: smoothed(name, array) for name, array in _seeded_torch(config, seed + DECODER_SEED).items()}
    bias = LazyArray((1,), np.float32, lambda: np.full(1, OCCUPANCY_BIAS, np.float32))
    return state | {"out_layer.2.bias": bias}


MODELS: dict[type, Model] = {
    EmbedderFuserConfig: Model(_torch_shapes, _compile_torch, ConditionEmbedder, _seeded_torch),
    StructureFlowConfig: Model(_torch_shapes, _compile_torch, StructureFlow, _seeded_flow),
    StructureDecoderConfig: Model(_torch_shapes, _compile_torch, StructureDecoder, _seeded_structure_decoder),
    SlatConfig: Model(
        slat_generator.parameter_shapes,
        _compile_slat,
        lambda component, config: SlatGenerator(config, component),
        slat_generator.seeded_state,
    ),
    GaussianDecoderConfig: Model(
        gaussian_decoder.parameter_shapes, _compile_decoder(GaussianModel), GaussianDecoder, gaussian_decoder.seeded_state
    ),
    MeshDecoderConfig: Model(
        mesh_decoder.parameter_shapes, _compile_decoder(MeshModel), MeshDecoder, mesh_decoder.seeded_state
    ),
}
