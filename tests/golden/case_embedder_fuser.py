"""`embedder_fuser`: the tokens of all inputs, and of some dropped.

`mid.embed.<input>` are what an embedder returns, `mid.projected.<input>` the same behind its projection; they are computed
from what was compiled by taking away the position of the group, and by torch.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from sam3d_tvm.models.condition_embedder import ConditionEmbedder, Embedder, EmbedderFuserConfig
from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser
from sparse_ops.deploy.from_torch import port_component
from tests.golden import case_dino, case_point_patch_embed, depths
from tests.golden.case import Case, Tensors

NO_IMAGES: Mapping[str, np.ndarray] = {}
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
    if name.startswith("mid.embed."):  # resized by torch, as the file was
        return depths_of(config_of(config))["embed"]
    images = {key.removeprefix("in."): value for key, value in tensors.items() if key.startswith("in.")}
    return depths_of(config_of(config), images)["tokens"]


def depths_of(config: EmbedderFuserConfig, images: Mapping[str, np.ndarray] = NO_IMAGES) -> dict[str, float]:
    """Additions behind what the deepest embedder returns, and behind the tokens, from images of these sizes by name."""
    embed = 0.0
    for part in config.embedders:
        if part.kind == "pointmap":
            embed = max(embed, case_point_patch_embed.depths_of(part.model)["tokens"])
        else:
            # Resized in numpy, which rounds positions otherwise than PyTorch does.
            sizes = [images[name].shape[2:] for name, _ in part.inputs if name in images]
            moved = max((depths.resize(size, (part.model.input_size,) * 2) for size in sizes), default=0.0)
            embed = max(embed, case_dino.depths_of(part.model, case_dino.RESIZED + moved)["tokens"])
    widest = config.channels
    project = depths.layer_norm(widest) + 2 * depths.linear(widest) + depths.linear(config.hidden)
    return {"embed": embed, "tokens": embed + project + 1}


CASE = Case(run, depth)
