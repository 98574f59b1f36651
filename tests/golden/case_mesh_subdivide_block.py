"""`mesh_subdivide_block`: one subdivision of the mesh decoder, with its group norms over every batch element."""

import numpy as np
from tvm.relax.frontend.nn import spec

from sam3d_tvm.models.mesh_decoder import SubdivideBlock
from sparse_ops.eager import functional as F
from sparse_ops.nn import Sites, SymbolicSparseTensor
from tests.golden import depths
from tests.golden.case import Case, Tensors
from tests.golden.case_slat_decoder_gs import run_tapped


def run(tensors: Tensors, config: dict) -> Tensors:
    block = SubdivideBlock(config["channels"], config["out_channels"], config["num_groups"])

    def forward(x, coords, offsets, record):
        sites = Sites(coords, offsets.shape[0] - 1)
        sites.put_offsets(offsets)

        def listen(name, feats):
            record(name, feats)
            if name == "conv0":  # the block has the activation in its norm, the file the norm alone
                record("groupnorm1", block.out_layers[1](SymbolicSparseTensor(feats, sites.subdivided(2)[0])).feats)

        y = block(SymbolicSparseTensor(x, sites), listen)
        return y.feats, y.coords

    x, coords = tensors["in.x"], tensors["in.coords"]
    types = [spec.Tensor(["n", x.shape[1]], "float32"), spec.Tensor(["n", 4], "int32"), spec.Tensor(["offsets"], "int32")]
    given = x, coords, F.batch_offsets(coords, int(coords[:, 0].max()) + 1)
    (y, out_coords), taps = run_tapped(block, forward, ["x", "coords", "offsets"], types, tensors, given)
    return taps | {"out.y": y, "out.coords": out_coords}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    if name == "out.coords":
        return 1.0
    return depths_of(tensors["in.coords"], config["channels"], config["out_channels"], config["num_groups"])[name.split(".")[1]]


def depths_of(coords: np.ndarray, channels: int, out_channels: int, groups: int) -> dict[str, float]:
    """Additions behind every tensor of a block on these voxels."""
    rows = depths.rows_of_element(coords)
    taps = depths.neighbours(F.subdivide(coords))
    found = {"act_layers": group_norm(rows, channels // groups), "skip": depths.linear(channels)}
    found["conv0"] = found["act_layers"] + depths.conv(channels, taps)
    found["groupnorm1"] = found["conv0"] + group_norm(8 * rows, out_channels // groups)
    return found | {"y": found["groupnorm1"] + depths.conv(out_channels, taps) + found["skip"]}


def group_norm(rows: int, width: int) -> float:
    """A mean, then a mean of squares, over the rows of a batch element and the channels of a group."""
    return 2 * rows * width


CASE = Case(run, depth)
