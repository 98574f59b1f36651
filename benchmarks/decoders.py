"""The decoders of structured latents, to Gaussians and to a mesh, against PyTorch with spconv.

    python -m benchmarks.decoders [--size full|tiny] [--precision float32|bfloat16] [--blocks N] [--json FILE] [--only NAME]

    gaussian_decoder    latents to the raw features of the Gaussians of every voxel
    mesh_decoder        latents to the features of 64 cubes a voxel, which a mesh is extracted from

"full" has the sizes of SAM-3D-Objects and 19,072 voxels. --blocks: how many of the transformer's blocks, which are all alike;
by default all. The reference is `benchmarks.decoder_reference` in float32, whose sparse convolutions run on one thread, as
they are wrong with more.

GFLOP/s count what the reference computes; savings show as more than is possible. MB are what a call adds at its peak, results
included; in the JSON `packed_mb` are the packed weights, which are there before it.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from sam3d_tvm.models import gaussian_decoder, mesh_decoder
from sam3d_tvm.models.gaussian_decoder import GaussianDecoder, GaussianDecoderConfig, GaussianModel
from sam3d_tvm.models.mesh_decoder import MeshDecoder, MeshDecoderConfig, MeshModel
from sam3d_tvm.models.slat_decoder import SlatDecoderConfig, SlatTransformer
from sparse_ops.deploy.from_nn import component_from_nn
from sparse_ops.eager import functional as F
from tests.golden import case_slat_decoder_gs, case_slat_decoder_mesh
from tests.sam3d_tvm.slat_reference import Reference
from tests.tolerance import Comparison, compare
from tir_kernels.spec import windows

from .decoder_reference import GaussianReference, MeshReference
from .harness import Benchmark, Case, Options, Peer, arrays
from .peers import THREADS, use_threads
from .sparse_conv import coords_of

OCCUPANCY = {"full": "nut_64", "tiny": "airplane_64"}
NARROW_ERROR = 0.02  # relative L2 that bfloat16 may be off


def transformer_flops(config: SlatDecoderConfig, coords: np.ndarray) -> float:
    """Of all blocks."""
    channels, total = config.model_channels, 0
    for block in range(config.num_blocks):
        shift = config.window_size // 2 * (block % 2)
        lengths = np.diff(windows.naive(coords, (config.window_size,) * 3, (shift,) * 3)[1]).astype(np.int64)
        total += len(coords) * (4 * channels**2 + 2 * channels * config.hidden) + 2 * channels * int((lengths**2).sum())
    return 2.0 * total


def gaussian_flops(config: GaussianDecoderConfig, coords: np.ndarray) -> float:
    return transformer_flops(config, coords) + 2.0 * len(coords) * config.model_channels * config.out_channels


def mesh_flops(config: MeshDecoderConfig, coords: np.ndarray) -> float:
    total = transformer_flops(config, coords)
    for width, next_width in pairwise(config.widths):
        coords = F.subdivide(coords)
        pairs = F.submanifold_map(coords).num_pairs
        total += 2.0 * (pairs * (width + next_width) + len(coords) * width) * next_width
    return total + 2.0 * len(coords) * config.widths[-1] * config.out_channels


@dataclass(frozen=True)
class Kind:
    """A decoder: its config of a size, model and run-time class, its reference, the operations of a call and their depth."""

    preset: Callable[[str], SlatDecoderConfig]
    model: type[SlatTransformer]
    decoder: type
    reference: type[Reference]
    seeded_state: Callable
    flops: Callable[[SlatDecoderConfig, np.ndarray], float]
    depth: Callable[[SlatDecoderConfig, np.ndarray], float]


KINDS = {
    "gaussian_decoder": Kind(
        gaussian_decoder.preset,
        GaussianModel,
        GaussianDecoder,
        GaussianReference,
        gaussian_decoder.seeded_state,
        gaussian_flops,
        lambda config, coords: case_slat_decoder_gs.depths_of(config, coords)["out_feats"],
    ),
    "mesh_decoder": Kind(
        mesh_decoder.preset,
        MeshModel,
        MeshDecoder,
        MeshReference,
        mesh_decoder.seeded_state,
        mesh_flops,
        lambda config, coords: case_slat_decoder_mesh.depths_of(config, coords)["feats"],
    ),
}


def decoder_case(kind: Kind, size: str, precision: str, blocks: int | None = None) -> Case:
    """A call of the compiled decoder, with weights from a seed, against one of the reference."""
    config, coords = kind.preset(size), coords_of(OCCUPANCY[size])
    config = config if blocks is None else replace(config, num_blocks=blocks)
    feats = np.random.default_rng(1).standard_normal((len(coords), config.latent_channels), dtype=np.float32)
    state, model = kind.seeded_state(config, 0), kind.model(config)
    component = component_from_nn(model, model.specs(), "decoder", state, precision=precision)
    decoder, reference = kind.decoder(component, config), kind.reference.of(config, state)
    given = torch.from_numpy(coords), torch.from_numpy(feats)
    expected = functools.cache(lambda: arrays(reference(*given)))
    depth = kind.depth(config, coords)
    facts = {"voxels": len(coords), "blocks": config.num_blocks, "packed_mb": component.packed_bytes / 1e6}

    def exact(result) -> list[Comparison]:
        return [compare(found, array, depth) for found, array in zip(arrays(result), expected(), strict=True)]

    def check(result) -> list[Comparison]:
        features, *rest = exact(result)
        facts["relative_l2"] = features.l2_error
        if precision == "bfloat16":
            problem = "" if features.l2_error <= NARROW_ERROR else f"relative L2 above {NARROW_ERROR}"
            features = replace(features, bound=NARROW_ERROR, problem=problem)
        return [features, *rest]

    peer = Peer(lambda: reference(*given), exact, use_threads(THREADS), memory=True)
    flops = kind.flops(config, coords)
    call = functools.partial(decoder, coords, feats)
    return Case(precision, call, check, {"torch_spconv": peer}, flops, facts, long=size == "full")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The decoders of structured latents against PyTorch with spconv.")
    parser.add_argument("--size", choices=OCCUPANCY, default="full")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--blocks", type=int, metavar="N", help="of the transformer; by default all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows to FILE")
    parser.add_argument("--only", default="", metavar="NAME", help="run only cases whose names contain this")
    given = parser.parse_args(arguments)
    bench = Benchmark("decoders", Options(given.size == "tiny", given.json, given.only))
    for name, kind in KINDS.items():
        bench.run(name, functools.partial(decoder_case, kind, given.size, given.precision, given.blocks))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
