"""The stages of the pipeline in PyTorch and spconv, random weights, timed: one to a process, for `benchmarks.pipeline`.

    python -m benchmarks.pipeline_reference STAGE PRECISION BLOCKS VOXELS CONFIG    prints a row as JSON; CONFIG: of a pipeline,
                                                                                    as JSON

Everything is on all cores. bfloat16 is torch's autocast; parameters stay float32 in memory. All convolutions in 3D stay float32
as well: spconv has no bfloat16 on a CPU, and torch's would run on one thread. spconv, too, has the threads that it takes by
itself, with which its convolutions are a data race on a CPU: that is how fast people have it, but its results are wrong, and
nothing is compared here. `benchmarks.slat` and `benchmarks.decoders` compare the same modules with one thread.
"""

import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from sam3d_tvm.bench import TIME_SCALE, guided_steps, peak_bytes, reset_peak
from sam3d_tvm.config import PipelineConfig, Sampling
from sam3d_tvm.mesh.flexicubes import extract_mesh
from sam3d_tvm.models import gaussian_decoder, mesh_decoder, slat_generator
from sam3d_tvm.models.condition_embedder import EmbedderFuserConfig
from sam3d_tvm.models.condition_embedder.network_torch import EmbedderFuser
from sam3d_tvm.models.example_torch import seeded
from sam3d_tvm.models.structure_decoder.network_torch import StructureDecoderModel
from sam3d_tvm.models.structure_flow.network_torch import StructureFlowModel
from sam3d_tvm.occupancy import demo_occupancy
from sam3d_tvm.pipeline import denormalised
from sam3d_tvm.splat.gaussians import Gaussians, offset_perturbation
from tests.sam3d_tvm import slat_reference

from .decoder_reference import GaussianReference, MeshReference

ROUNDS = 3  # of calls of a flow
TIME = torch.tensor([0.4 * TIME_SCALE])


def measured(stage: str, precision: str, config: PipelineConfig, blocks: int, coords: np.ndarray) -> dict:
    """The row of a stage of `STAGES`. Transformers of both flows get up to `blocks` blocks; coords int32 [N, 4]; `precision`
    "float32" or "bfloat16"."""
    slat_reference.one_thread = contextlib.nullcontext
    torch.manual_seed(0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        return {"stage": stage, **STAGES[stage](config, blocks, coords)}


def once(call: Callable[[], object]) -> dict:
    """A row of a single call, the first one, as a run has it."""
    gc.collect()
    reset_peak()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return {"seconds": [seconds], "total_seconds": seconds, "peak_bytes": peak_bytes(), "measured": "whole"}


def sampled(model: nn.Module, call: Callable[[], object], num_blocks: int, sampling: Sampling) -> dict:
    """A row of all steps of a flow of `num_blocks` blocks, of which `model` has the first few.

    A velocity takes as long as one of all blocks that are there, and for each that is missing as much again as the last ones
    took beyond the first. The peak grows by the weights of those that are missing: features are the same in every block.
    """
    blocks = model.blocks
    counts = sorted({1, len(blocks)})
    seconds = {count: [] for count in counts}

    def velocity(count: int) -> float:
        model.blocks = blocks[:count]
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    gc.collect()
    reset_peak()
    velocity(len(blocks))
    for _ in range(ROUNDS):
        for count in counts:
            seconds[count].append(velocity(count))
    first, last = (statistics.median(seconds[count]) for count in (1, len(blocks)))
    block = (last - first) / max(1, len(blocks) - 1)
    missing = num_blocks - len(blocks)
    calls = sampling.steps + guided_steps(sampling)
    peak = peak_bytes()
    return {
        "seconds": seconds,
        "velocity_seconds": last + missing * block,
        "block_seconds": block,
        "calls": calls,
        "total_seconds": calls * (last + missing * block),
        "measured_peak_bytes": peak,
        "peak_bytes": peak and peak + missing * sum(parameter.nbytes for parameter in blocks[-1].parameters()),
        "measured": f"1 of {calls} calls, {' and '.join(map(str, counts))} of {num_blocks} blocks",
    }


def condition(config: EmbedderFuserConfig) -> dict:
    """All images, masks and point maps at once, as upstream has it."""
    module = seeded(partial(EmbedderFuser, config))
    images = {
        name: torch.rand(1, embedder.channels, *(embedder.model.input_size,) * 2)
        for embedder in config.embedders
        for name, _ in embedder.inputs
    }
    return once(lambda: module(**images))


def structure(config: PipelineConfig, blocks: int, _) -> dict:
    flow = config.ss_generator
    module = seeded(partial(StructureFlowModel, _few_blocks(flow, blocks)))
    latents = {name: torch.randn(1, latent.token_len, latent.in_channels) for name, latent in flow.latent_mapping.items()}
    cond = torch.randn(1, config.ss_condition_embedder.tokens, flow.cond_channels)
    call = partial(module, latents, TIME, torch.zeros(1), cond)
    return sampled(module, call, flow.num_blocks, config.ss_sampling)


def voxels(config: PipelineConfig, *_) -> dict:
    module = seeded(partial(StructureDecoderModel, config.ss_decoder))
    latent = torch.randn(1, config.ss_decoder.tokens, config.ss_decoder.latent_channels)
    with torch.autocast("cpu", enabled=False):  # bfloat16 would be one thread's, for many minutes
        return once(lambda: module(latent))


def latents(config: PipelineConfig, blocks: int, coords: np.ndarray) -> dict:
    flow = config.slat_generator
    few = _few_blocks(flow, blocks)
    module = slat_reference.SlatReference.of(few, slat_generator.seeded_state(few, 0))
    noise = torch.randn(len(coords), flow.in_channels)
    cond = torch.randn(1, config.slat_condition_embedder.tokens, flow.cond_channels)
    return sampled(module, partial(module, torch.from_numpy(coords), noise, TIME, cond), flow.num_blocks, config.slat_sampling)


def gaussians(config: PipelineConfig, _, coords: np.ndarray) -> dict:
    """The decoder, then Gaussians of its features as ours makes them."""
    decoder = config.slat_decoder_gs
    module = GaussianReference.of(decoder, gaussian_decoder.seeded_state(decoder, 0))
    feats = _latents(config, len(coords))
    offsets = offset_perturbation(decoder.representation)

    def call() -> Gaussians:
        raw = module(torch.from_numpy(coords), torch.from_numpy(feats)).float().numpy()
        return Gaussians.from_features(coords, raw, decoder.resolution, decoder.representation, offsets)

    return once(call)


def mesh(config: PipelineConfig, _, coords: np.ndarray) -> dict:
    """The decoder, then our extraction."""
    decoder = config.slat_decoder_mesh
    module = MeshReference.of(decoder, mesh_decoder.seeded_state(decoder, 0))
    feats = _latents(config, len(coords))
    decoded = []

    def call() -> None:
        start = time.perf_counter()
        features, fine = module(torch.from_numpy(coords), torch.from_numpy(feats))
        decoded.append(time.perf_counter() - start)
        extract_mesh(fine.numpy(), features.float().numpy(), decoder.out_resolution, decoder.representation_config["use_color"])

    row = once(call)
    return row | {"decoder_seconds": decoded[0]}


STAGES: dict[str, Callable[[PipelineConfig, int, np.ndarray], dict]] = {
    "condition of the structure": lambda config, *_: condition(config.ss_condition_embedder),
    "structure": structure,
    "voxels": voxels,
    "condition of the latents": lambda config, *_: condition(config.slat_condition_embedder),
    "latents": latents,
    "gaussians": gaussians,
    "mesh": mesh,
}


def _few_blocks(flow, blocks: int):
    """A config with at most so many blocks."""
    return replace(flow, num_blocks=min(blocks, flow.num_blocks))


def _latents(config: PipelineConfig, rows: int) -> np.ndarray:
    """Random ones, float32 [rows, C], as decoders take them."""
    noise = np.random.default_rng(0).standard_normal((rows, config.slat_generator.out_channels), np.float32)
    return denormalised(noise, config)


if __name__ == "__main__":
    name, precision, blocks, count, config = sys.argv[1:]
    row = measured(name, precision, PipelineConfig.from_json(json.loads(config)), int(blocks), demo_occupancy()[: int(count)])
    print(json.dumps(row))
