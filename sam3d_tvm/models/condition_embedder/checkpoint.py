"""The condition embedder in a published checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sam3d_tvm.models.condition_embedder.config import DinoConfig, Embedder, EmbedderFuserConfig, PointPatchConfig
from sam3d_tvm.models.dinov2 import HUB
from sam3d_tvm.models.upstream import EMBEDDERS, pick

DINO_MODELS = tuple(name for name, sizes in HUB.items() if sizes.num_register_tokens)


def _dino(values: Mapping[str, Any]) -> DinoConfig:
    name = values.get("dino_model")
    if name not in DINO_MODELS:
        raise ValueError(f"dino_model: expected one of {', '.join(DINO_MODELS)}, given {name!r}")
    ignored = ("dino_model", "repo_or_dir", "source", "freeze_backbone", "prune_network", "backbone_kwargs", "normalize_images")
    picked = pick(values, ("input_size", "prenorm_features"), {}, ignored)
    sizes = asdict(HUB[name])
    more = values.get("backbone_kwargs") or {}
    taken = ("embed_dim", "depth", "num_heads", "img_size", "patch_size", "num_register_tokens", "mlp_ratio")
    return DinoConfig(**sizes | picked | pick(more, taken, {}, ("pretrained", "interpolate_antialias", "interpolate_offset")))


def _point_patch(values: Mapping[str, Any]) -> PointPatchConfig:
    taken = ("input_size", "patch_size", "embed_dim", "remap_output")
    return PointPatchConfig(**pick(values, taken, {}, ("dropout_prob", "force_dropout_always")))


def _fuser(values: Mapping[str, Any]) -> EmbedderFuserConfig:
    only = {"use_pos_embedding": "learned", "projection_pre_norm": True, "compression_projection_multiplier": 0}
    training = ("freeze", "drop_modalities_weight", "dropout_prob", "force_drop_modalities")
    picked = pick(values, ("projection_net_hidden_dim_multiplier",), only, ("embedder_list", *training))
    embedders = []
    for model, inputs in values["embedder_list"]:
        pairs = inputs[0] if len(inputs) == 1 and isinstance(inputs[0][0], list) else inputs
        names = [name for name, _ in pairs]
        kind = "pointmap" if isinstance(model, PointPatchConfig) else "mask" if names[0].endswith("mask") else "image"
        embedders.append(Embedder(kind, model, tuple((name, group) for name, group in pairs)))
    return EmbedderFuserConfig(tuple(embedders), **picked)


TARGETS = {
    EMBEDDERS + "embedder_fuser.EmbedderFuser": _fuser,
    EMBEDDERS + "dino.Dino": _dino,
    EMBEDDERS + "pointmap.PointPatchEmbed": _point_patch,
}
