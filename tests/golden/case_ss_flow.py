"""`ss_flow`: the whole sparse-structure flow generator, with and without condition and step length.

`out.y.*` is the velocity at `in.t` and `in.d`, `out.y_d0.*` that at d = 0, `out.y_d0_cfg.*` the same without the condition,
`out.y_no_d.*` leaves the embedding of d out. `mid.*` are inner results on the way to `out.y.*`. `in.t` and `in.d` are numbers,
of one element each, or of all elements of the batch each.
"""

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch

from sam3d_tvm.models.structure_flow import SHAPE, StructureFlow, StructureFlowConfig
from sam3d_tvm.models.structure_flow.network_torch import METHODS, StructureFlowModel, export_arguments
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_torch import port_component
from tests.golden import depths
from tests.golden.case import Case, Tensors


def config_of(config: dict) -> StructureFlowConfig:
    """The fields that describe the model; a file's config also tells how the file was made."""
    return StructureFlowConfig(
        **{field.name: config[field.name] for field in fields(StructureFlowConfig) if field.name in config}
    )


def named(tensors: Mapping, prefix: str) -> dict:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def module_of(tensors: Tensors, config: dict) -> StructureFlowModel:
    """The module with the parameters of the file."""
    module = StructureFlowModel(config_of(config))
    state = {name: torch.from_numpy(value) for name, value in named(tensors, "state.").items()}
    if not config.get("is_shortcut_model", True):  # such a model has no embedding of d, which adds nothing
        state |= {f"d_embedder.{name}": torch.zeros_like(value) for name, value in module.d_embedder.state_dict().items()}
    module.load_state_dict(state)
    return module.requires_grad_(False).eval()


def compiled(module: StructureFlowModel) -> Component:
    """For any batch and any number of tokens, with what a trace needs."""
    inputs, dynamic = export_arguments(module.config, (*METHODS, "trace"))
    return port_component(module, inputs, "structure_flow", dynamic=dynamic)


def run(tensors: Tensors, config: dict, code: Component | None = None) -> Tensors:
    """`code`: what `compiled` returned for a model of the same config, whatever its parameters."""
    module = module_of(tensors, config)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    component = compiled(module) if code is None else code.with_parameters(state)
    flow = StructureFlow(component, module.config)
    latents, plan = named(tensors, "in.latent."), flow.prepare(tensors["in.cond"])
    t, d = (tensors.get(f"in.{name}", np.zeros(1, np.float32)).reshape(-1) for name in ("t", "d"))

    velocities = {
        "y": flow.velocity(latents, t, d, plan),
        "y_d0": flow.velocity(latents, t, 0.0, plan),
        "y_d0_cfg": flow.velocity(latents, t, 0.0, plan, conditional=False),
        "y_no_d": flow.velocity(latents, t, None, plan),
    }
    out = {f"out.{name}.{latent}": value for name, found in velocities.items() for latent, value in found.items()}
    embedded = {"t_embedder": component["embed_t"](t), "d_embedder": component["embed_d"](d)}
    rows = [np.broadcast_to(emb, (plan.batch, emb.shape[1])) for emb in embedded.values()]
    modulation = component["modulation"](*map(np.ascontiguousarray, rows))
    streams = component["trace"](latents, modulation, plan.context, plan.cond)
    places = ["input", *(f"block{i}" for i in range(module.config.num_blocks))]
    for place, found in zip(places, streams, strict=True):
        embedded |= {f"{place}.{stream}": value for stream, value in found.items()}
    return out | {f"mid.{name}": value for name, value in embedded.items()}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    time = max(tensors[key].max() for key in ("in.t", "in.d") if key in tensors)
    found = depths_of(config_of(config), tensors["in.cond"].shape[1], time)
    return found["y" if name.startswith("out.") else name.split(".")[1]]


def depths_of(config: StructureFlowConfig, tokens: int, time: float) -> dict[str, float]:
    """Additions behind every tensor, along the model; of both streams the longer sums."""
    inner, head_dim = config.model_channels, config.model_channels // config.num_heads
    keys = sum(latent.token_len for latent in config.latent_mapping.values())
    # One frequency in fifty is rounded the other way by another library, which moves its angle by `time` roundings:
    # over all of them, a tenth of that.
    emb = (0.1 * time) ** 2 + depths.linear(256) + depths.linear(inner)
    so_far = depths.linear(config.latent_mapping[SHAPE].in_channels) + 1
    found = {"t_embedder": emb, "d_embedder": emb, "input": so_far}
    so_far += 2 * emb
    for i in range(config.num_blocks):
        so_far += 3 * depths.layer_norm(inner) + 3 * depths.linear(inner)  # norms, and modulation of two of them
        so_far += depths.attention(head_dim, keys) + 2 * depths.linear(inner)
        so_far += depths.attention(head_dim, tokens) + 2 * depths.linear(inner) + depths.linear(config.cond_channels)
        so_far += depths.linear(inner) + depths.linear(config.hidden)
        found[f"block{i}"] = so_far
    return found | {"y": so_far + depths.layer_norm(inner) + depths.linear(inner)}


CASE = Case(run, depth)
