"""`prune_downsample`: voxels without those that are buried, `out.pruned_d<distance>`, and on a coarser grid."""

from sam3d_tvm.models.structure_decoder.voxels import downsample, prune
from tests.golden.case import Case, Tensors

PRUNED = "out.pruned_d"


def run(tensors: Tensors, config: dict) -> Tensors:
    coords = tensors["in.coords"]
    coarse, factors = downsample(coords, config["max_coords"], config["downsample_factor"])
    out = {"out.downsampled": coarse, "out.downsample_factor": factors}
    return out | {name: prune(coords, int(name.removeprefix(PRUNED))) for name in tensors if name.startswith(PRUNED)}


CASE = Case(run)
"""Integers only: nothing is rounded."""
