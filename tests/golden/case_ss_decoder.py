"""`ss_decoder`: the compiled structure decoder, with what every part of it returns, and the voxels above 0.

`in.latent` is `in.tokens` as a grid, which the module takes too.
"""

from dataclasses import fields

import numpy as np
import torch

from sam3d_tvm.models.structure_decoder import StructureDecoderConfig
from sam3d_tvm.models.structure_decoder.network_torch import StructureDecoderModel
from sam3d_tvm.models.structure_decoder.voxels import occupied_coords
from sparse_ops.deploy.from_torch import port_component
from tests.golden import depths
from tests.golden.case import Case, Tensors

TAPS = 27  # of a kernel


def config_of(config: dict) -> StructureDecoderConfig:
    """The fields that describe the model; a file's config also tells how the file was made."""
    names = {field.name for field in fields(StructureDecoderConfig)}
    return StructureDecoderConfig(**{name: config[name] for name in names if name in config}, resolution=config["grid"])


def module_of(tensors: Tensors, config: dict) -> StructureDecoderModel:
    """The PyTorch module with the parameters of the file."""
    with torch.device("meta"):
        module = StructureDecoderModel(config_of(config))
    state = {name.removeprefix("state."): torch.from_numpy(v) for name, v in tensors.items() if name.startswith("state.")}
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False).eval()


def run(tensors: Tensors, config: dict) -> Tensors:
    tokens = tensors["in.tokens"]
    component = port_component(module_of(tensors, config), {"taps": (torch.from_numpy(tokens[:1]),)}, "ss_decoder")
    elements = [component["taps"](tokens[i : i + 1]) for i in range(len(tokens))]
    found = {name: np.concatenate([element[name] for element in elements]) for name in elements[0]}
    out = {"out.logits": found["logits"], "out.coords": occupied_coords(found["logits"])}
    return out | {f"mid.{name}": value for name, value in found.items()}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    return depths_of(config_of(config)).get(name.split(".")[1], 1.0)


def depths_of(config: StructureDecoderConfig) -> dict[str, float]:
    """Additions behind what every part returns, along the network."""

    def block(channels: int) -> float:
        return 2 * (depths.layer_norm(channels) + depths.conv(channels, TAPS)) + 1

    so_far = depths.conv(config.latent_channels, TAPS)
    found = {"input_layer": so_far}
    so_far += config.num_res_blocks_middle * block(config.channels[0])
    found["middle_block"] = so_far
    parts = []
    for channels in config.channels:
        parts += [*[block(channels)] * config.num_res_blocks, depths.conv(channels, TAPS)]
    for i, part in enumerate(parts[:-1]):  # nothing is upsampled behind the last level
        so_far += part
        found[f"block{i}"] = so_far
    last = config.channels[-1]
    return found | {"logits": so_far + depths.layer_norm(last) + depths.conv(last, TAPS)}


CASE = Case(run, depth)
