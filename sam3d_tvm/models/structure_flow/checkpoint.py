"""The structure flow in a published checkpoint."""

from collections.abc import Mapping
from typing import Any

from sam3d_tvm.models.structure_flow.config import StructureFlowConfig
from sam3d_tvm.models.upstream import TDFY, pick


def _structure_flow(values: Mapping[str, Any]) -> StructureFlowConfig:
    taken = ("model_channels", "cond_channels", "num_blocks", "num_heads", "mlp_ratio")
    only = {"pe_mode": "ape", "qk_rms_norm": True, "qk_rms_norm_cross": False, "share_mod": False, "patch_size": 1}
    only |= {"force_zeros_cond": True, "is_shortcut_model": True}
    training = ("use_fp16", "use_checkpoint", "freeze_d_time_embedder", "freeze_shared_parameters", "shape_attend_pose")
    rest = ("in_channels", "out_channels", "resolution", "num_head_channels", "condition_embedder")
    picked = pick(values, (*taken, "latent_mapping", "latent_share_transformer"), only, (*training, *rest))
    return StructureFlowConfig(**picked)


def _latent(values: Mapping[str, Any]) -> tuple[int, int]:
    return values["in_channels"], values["pos_embedder"]


TARGETS = {
    TDFY + "mot_sparse_structure_flow.SparseStructureFlowTdfyWrapper": _structure_flow,
    TDFY + "mm_latent.Latent": _latent,
    TDFY + "mm_latent.LearntPositionEmbedder": lambda values: values["token_len"],
    TDFY + "mm_latent.ShapePositionEmbedder": lambda values: (values["resolution"] // values["patch_size"]) ** 3,
}
