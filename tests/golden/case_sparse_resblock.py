"""`sparse_resblock`: a chain of residual blocks, some of which change the resolution.

`config["chain"]` lists the blocks; `mid.<name>` is what a block returns, `mid.<name>_coords` on which sites, and
`mid.<name>_<step>` an inner step: emb, norm1, conv1, norm2 and conv2 as the layers alone return them, pooled, unpooled
and skip. `out.y` is what the last block returns.
"""

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.relax.frontend.nn import spec

from sam3d_tvm.models.sparse_blocks import SparseResBlock3d
from sparse_ops import nn
from sparse_ops.build import pack_params
from tests.golden import depths
from tests.golden.case import Case, Tensors, compiled
from tir_kernels.spec import unique


class Chain(nn.Module):
    """The blocks under their names, with every inner result among the outputs."""

    def __init__(self, chain: Sequence[dict]):
        self.names = [entry["name"] for entry in chain]
        for entry in chain:
            options = {key: entry.get(key, False) for key in ("downsample", "upsample")}
            block = SparseResBlock3d(entry["channels"], entry["emb_channels"], entry["out_channels"], **options)
            setattr(self, entry["name"], block)
        self.silu = nn.Activation("silu")
        self.outputs: list[str] = []  # names of the results, known after export

    def forward(self, feats: nn.Tensor, coords: nn.Tensor, emb: nn.Tensor):
        found = {}
        x, emb = nn.SymbolicSparseTensor.of(feats, coords, emb.shape[0]), self.silu(emb)
        for name in self.names:
            block = getattr(self, name)
            inner: dict[str, nn.Tensor] = {}
            before, x = x, block(x, emb, inner.__setitem__)
            if block.upsample is not None:
                inner["unpooled"] = block.upsample(before).feats
            first = inner.get("pooled", inner.get("unpooled", before.feats))
            inner["emb"] = block.emb_layers[1](emb)
            # The block fuses what follows into these layers; here they stand alone.
            inner["norm1"] = block.norm1(first)
            inner["norm2"] = block.norm2(inner["conv1"])
            inner["conv2"] = block.conv2(x.with_feats(inner["hidden"])).feats
            found |= {f"mid.{name}_{step}": value for step, value in inner.items()}
            found |= {f"mid.{name}": x.feats, f"mid.{name}_coords": x.coords}
        found["out.y"] = x.feats
        self.outputs = list(found)
        return list(found.values())


def run(tensors: Tensors, config: dict) -> Tensors:
    chain = Chain(config["chain"])
    inputs = {
        "feats": spec.Tensor(["rows", tensors["in.x"].shape[1]], "float32"),
        "coords": spec.Tensor(["rows", 4], "int32"),
        "emb": spec.Tensor(["batch", tensors["in.emb"].shape[1]], "float32"),
    }
    mod, params = chain.export_tvm({"forward": inputs})
    program = compiled(mod)
    weights = [tvm.runtime.tensor(tensors[f"state.{name}"]) for name, _ in params]
    arrays = [tvm.runtime.tensor(tensors[f"in.{name}"]) for name in ("x", "coords", "emb")]
    results = program["forward"](*arrays, *pack_params(program, "forward", weights.__getitem__))
    return {name: value.numpy() for name, value in zip(chain.outputs, results, strict=True)}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    return _depths(tensors["in.coords"], config)[name]


def _depths(coords: np.ndarray, config: dict) -> dict[str, float]:
    """Additions behind every tensor, along the chain."""
    found, so_far, finer = {}, 0.0, []
    for entry in config["chain"]:
        name, cin, cout, width = (entry[key] for key in ("name", "channels", "out_channels", "emb_channels"))
        if entry.get("downsample"):
            finer.append(coords)
            coords, _ = unique.naive(coords, (2, 2, 2))
            so_far += depths.downsample()
        if entry.get("upsample"):
            coords = finer.pop()
        taps = depths.neighbours(coords)
        emb, norm1 = depths.linear(width), so_far + depths.layer_norm(cin)
        conv1 = norm1 + depths.conv(cin, taps)
        norm2 = conv1 + depths.layer_norm(cout)
        conv2 = norm2 + emb + depths.conv(cout, taps)
        skip = so_far + depths.linear(cin)
        steps = {"pooled": so_far, "unpooled": so_far, "emb": emb, "norm1": norm1, "conv1": conv1, "norm2": norm2}
        steps |= {"conv2": conv2, "skip": skip, "hidden": norm2 + emb, "coords": 1.0}
        so_far += depths.resblock(cin, cout, width, taps)
        found |= {f"mid.{name}_{step}": value for step, value in steps.items()}
        found |= {f"mid.{name}": so_far, "out.y": so_far}
    return found


CASE = Case(run, depth)
