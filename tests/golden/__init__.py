"""Reference results of the public PyTorch code, and the cases that compute them again.

    python -m tests.golden FILE...

A file holds `state.*`, `in.*`, `mid.*` and `out.*` tensors and a JSON `config`; its case is the file's name up to `__`,
so `sampler__seed7.safetensors` is run by the case `sampler`. A case is one module here and one line of `CASES`.
"""

from tests.golden import (
    case_dino,
    case_embedder_fuser,
    case_mesh_extract,
    case_mesh_subdivide_block,
    case_moge_infer,
    case_moge_model,
    case_networks,
    case_outliers,
    case_pipeline_tiny,
    case_point_patch_embed,
    case_pointmap_pipeline,
    case_pose_decoder,
    case_preprocess,
    case_prune_downsample,
    case_sampler,
    case_slat_decoder_gs,
    case_slat_decoder_mesh,
    case_slat_flow,
    case_sparse_downsample_upsample,
    case_sparse_resblock,
    case_ss_decoder,
    case_ss_flow,
    case_subm_conv3d,
    case_torture,
    case_windowed_attention,
)
from tests.golden.case import Case

CASES: dict[str, Case] = {
    "dino": case_dino.CASE,
    "embedder_fuser": case_embedder_fuser.CASE,
    "mesh_extract": case_mesh_extract.CASE,
    "mesh_extract_nocolor": case_mesh_extract.CASE,
    "mesh_extract_random": case_mesh_extract.CASE,
    "mesh_subdivide_block": case_mesh_subdivide_block.CASE,
    "moge_infer": case_moge_infer.CASE,
    "moge_model": case_moge_model.CASE,
    "outliers": case_outliers.CASE,
    "pipeline_tiny": case_pipeline_tiny.CASE,
    "point_patch_embed": case_point_patch_embed.CASE,
    "pointmap_pipeline": case_pointmap_pipeline.CASE,
    "pose_decoder": case_pose_decoder.CASE,
    "preprocess": case_preprocess.CASE,
    "prune_downsample": case_prune_downsample.CASE,
    "sampler": case_sampler.CASE,
    "slat_decoder_gs": case_slat_decoder_gs.CASE,
    "slat_decoder_mesh": case_slat_decoder_mesh.CASE,
    "slat_flow": case_slat_flow.CASE,
    "sparse_downsample_upsample": case_sparse_downsample_upsample.CASE,
    "sparse_resblock": case_sparse_resblock.CASE,
    "ss_decoder": case_ss_decoder.CASE,
    "ss_flow": case_ss_flow.CASE,
    "subm_conv3d": case_subm_conv3d.CASE,
    "torture": case_torture.CASE,
    "windowed_attention": case_windowed_attention.CASE,
    **case_networks.CASES,
}
