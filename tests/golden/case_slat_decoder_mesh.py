"""`slat_decoder_mesh`: the mesh decoder up to the features that a mesh is extracted from."""

from itertools import pairwise

import numpy as np

from sam3d_tvm.models.mesh_decoder import MeshDecoderConfig, MeshModel
from sparse_ops.eager import functional as F
from tests.golden import case_mesh_subdivide_block as block
from tests.golden import depths
from tests.golden.case import Case, Tensors
from tests.golden.case_slat_decoder_gs import config_of, run_tapped, transformer_depths


def run(tensors: Tensors, config: dict) -> Tensors:
    model = MeshModel(_config(config))
    function = model.specs()["forward"]
    x, coords = tensors["in.x"], tensors["in.coords"]
    given = x, coords, F.batch_offsets(coords, int(coords[:, 0].max(initial=0)) + 1)
    (feats, out_coords), taps = run_tapped(model, model.forward, function.arg_names, function.arg_specs, tensors, given)
    return taps | {"out.feats": feats, "out.coords": out_coords}


def _config(config: dict) -> MeshDecoderConfig:
    groups = {"num_groups": config["subdivide_num_groups"]} if "subdivide_num_groups" in config else {}
    return config_of(MeshDecoderConfig, config | groups)


def depth(name: str, tensors: Tensors, config: dict) -> float:
    return 1.0 if name == "out.coords" else depths_of(_config(config), tensors["in.coords"])[name.split(".")[1]]


def depths_of(config: MeshDecoderConfig, coords: np.ndarray) -> dict[str, float]:
    """Additions behind every tensor, along the model."""
    found = transformer_depths(config, coords)
    so_far = list(found.values())[-1]
    for i, (width, next_width) in enumerate(pairwise(config.widths)):
        so_far += block.depths_of(coords, width, next_width, config.num_groups)["y"]
        found[f"upsample{i}"] = so_far
        coords = F.subdivide(coords)
    return found | {"feats": so_far + depths.linear(config.widths[-1])}


CASE = Case(run, depth)
