"""The models that come from torch.export, compiled for a pipeline: one image or object at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn

from sam3d_tvm.components.condition_embedder import EmbedderFuserConfig
from sam3d_tvm.components.structure_decoder import StructureDecoderConfig
from sam3d_tvm.components.structure_flow import StructureFlowConfig
from sam3d_tvm.torch_modules.embedder_fuser import EmbedderFuser
from sam3d_tvm.torch_modules.structure_decoder import StructureDecoder
from sam3d_tvm.torch_modules.structure_flow import StructureFlowModel, export_arguments
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_torch import port_component
from sparse_ops.deploy.weights import State, check_arrays

MODULES: dict[type, Callable[[Any], nn.Module]] = {
    EmbedderFuserConfig: EmbedderFuser,
    StructureFlowConfig: StructureFlowModel,
    StructureDecoderConfig: StructureDecoder,
}


def parameter_shapes(config: EmbedderFuserConfig | StructureFlowConfig | StructureDecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of the module of a config."""
    return {name: tuple(value.shape) for name, value in _empty(config).state_dict().items()}


def compile_component(
    config: EmbedderFuserConfig | StructureFlowConfig | StructureDecoderConfig,
    state: State,
    name: str,
    precision: str = "float32",
    target: tvm.target.Target | None = None,
    cond_tokens: int | None = None,
) -> Component:
    """The component of a config with the weights of `state`. `cond_tokens`: of the condition of a structure flow.

    Sizes are numbers, as compiling for any takes many times as long. Raises ValueError for a state that does not fit, see
    `check_arrays`, and as `port_component`.
    """
    module = _empty(config)
    check_arrays({key: tuple(value.shape) for key, value in module.state_dict().items()}, state)
    tensors = {key: torch.from_numpy(np.ascontiguousarray(np.asarray(state[key]), np.float32)) for key in module.state_dict()}
    module.load_state_dict(tensors, assign=True)  # over the memory of the state, which may be a mapped file
    inputs: Mapping[str, tuple] = _inputs(config, module, cond_tokens)
    return port_component(module.requires_grad_(False).eval(), inputs, name, precision=precision, target=target)


def _empty(config) -> nn.Module:
    """The module without memory for its parameters."""
    with torch.device("meta"):
        return MODULES[type(config)](config)


def _inputs(config, module: nn.Module, cond_tokens: int | None) -> Mapping[str, tuple]:
    if isinstance(config, EmbedderFuserConfig):
        return module.inputs()
    if isinstance(config, StructureFlowConfig):
        return export_arguments(config, batch=1, tokens=cond_tokens)[0]
    return {"forward": (torch.zeros(1, config.tokens, config.latent_channels),)}
