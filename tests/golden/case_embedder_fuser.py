"""`embedder_fuser`: the tokens of all inputs, and of some dropped.

`mid.embed.<input>` are what an embedder returns, `mid.projected.<input>` the same behind its projection; they are computed
from what was compiled by taking away the position of the group, and by torch.
"""

from functools import partial

import torch

from sam3d_tvm.models.condition_embedder import ConditionEmbedder, Embedder, EmbedderFuserConfig
from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser
from sparse_ops.deploy.from_torch import port_component
from tests.golden import case_dino, case_point_patch_embed, depths
from tests.golden.case import Case, Tensors

DROPPED = "out.tokens_dropped_pointmaps"


def config_of(config: dict) -> EmbedderFuserConfig:
    """The embedders in the order of the file; the names of its inputs tell what an embedder takes."""
    embedders = []
    for _, inputs in config["embedder_list"]:
        first, _ = inputs[0]
        kind = next(kind for kind in ("pointmap", "mask", "image") if kind in first)
        model = (
            case_dino.config_of(config["dino"])
            if kind != "pointmap"
            else case_point_patch_embed.config_of(config["pointpatch"])
        )
        embedders.append(Embedder(kind, model, inputs))
    return EmbedderFuserConfig(tuple(embedders), config["projection_net_hidden_dim_multiplier"])


def run(tensors: Tensors, config: dict) -> Tensors:
    sizes = config_of(config)
    module = case_dino.module_of(partial(EmbedderFuser, sizes), tensors)
    embedder = ConditionEmbedder(port_component(module, module.inputs(), "condition"), sizes)
    images = {name.removeprefix("in."): value for name, value in tensors.items() if name.startswith("in.")}
    tokens = embedder.tokens(images)
    dropped = [name for part in sizes.embedders if part.kind == "pointmap" for name, _ in part.inputs]
    out = {"out.tokens": tokens, DROPPED: embedder.tokens(images, drop=dropped)}
    for part, model in zip(sizes.embedders, module.module_list, strict=True):
        for name, group in part.inputs:
            with torch.no_grad():
                out[f"mid.embed.{name}"] = model(torch.from_numpy(images[name])).numpy()
            out[f"mid.projected.{name}"] = tokens[:, embedder.rows[name]] - module.idx_emb[sizes.groups[group]].numpy()
    return out


def depth(name: str, tensors: Tensors, config: dict) -> float:
    return depths_of(config_of(config))["embed" if name.startswith("mid.embed.") else "tokens"]


def depths_of(config: EmbedderFuserConfig) -> dict[str, float]:
    """Additions behind what the deepest embedder returns, and behind the tokens."""
    models = [(case_point_patch_embed if part.kind == "pointmap" else case_dino, part.model) for part in config.embedders]
    embed = max(case.depths_of(model)["tokens"] for case, model in models)
    widest = config.channels
    project = depths.layer_norm(widest) + 2 * depths.linear(widest) + depths.linear(config.hidden)
    return {"embed": embed, "tokens": embed + project + 1}


CASE = Case(run, depth)
