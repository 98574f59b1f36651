"""The pipeline of the preset "random-tiny" on the emulated device, every model against the CPU's on the same inputs.

    python -m tests.cuda_pipeline [--precision float16] [--voxels 300] [--first-half]

A photo becomes a structure, and voxels become a splat and a mesh, one step of each sampler. The second half takes the voxels of
a small ball in place of all that the first one finds, which would take an emulator an hour; --first-half adds the first one,
which takes some ten minutes. What is recorded of each model, arguments and result, is computed once more on the CPU.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from sam3d_tvm.artifacts import Artifacts
from sam3d_tvm.models import MODELS
from sam3d_tvm.models.condition_embedder.run import ConditionEmbedder
from sam3d_tvm.models.gaussian_decoder.run import GaussianDecoder
from sam3d_tvm.models.mesh_decoder.run import MeshDecoder
from sam3d_tvm.models.slat_generator import SlatGenerator
from sam3d_tvm.models.structure_decoder import StructureDecoder
from sam3d_tvm.models.structure_flow import StructureFlow
from sam3d_tvm.pipeline import Pipeline
from sam3d_tvm.pose import Pose
from sam3d_tvm.structure import Structure
from sam3d_tvm.validate import BOUNDS
from tests.cuda_device import cuda_target, device
from tests.golden import (
    case_embedder_fuser,
    case_slat_decoder_gs,
    case_slat_decoder_mesh,
    case_slat_flow,
    case_ss_decoder,
    case_ss_flow,
)
from tests.sam3d_tvm.tiny_pipeline import SOURCE, disc_photo, tiny_artifacts
from tests.tolerance import Comparison, compare

OF_ONE_RUN = ("on_step", "evaluations")  # options of samplers that tell of a run, and do not decide what comes out
LONGEST = 1000.0  # the time of the first step of a sampler
DEPTHS: dict[str, Callable[..., float]] = {  # additions behind the results of a model, from its config and arguments
    "ss_condition_embedder": lambda config, images, **_: case_embedder_fuser.depths_of(config, images)["tokens"],
    "ss_generator": lambda config, noise, cond, *_, **__: case_ss_flow.depths_of(config, cond[0].shape[1], LONGEST)["y"],
    "ss_decoder": lambda config, shape: case_ss_decoder.depths_of(config)["logits"],
    "slat_condition_embedder": lambda config, images, **_: case_embedder_fuser.depths_of(config, images)["tokens"],
    "slat_generator": lambda config, coords, cond, *_, **__: case_slat_flow.depths_of(
        config, coords, cond[0].shape[1], LONGEST
    )["y"],
    "slat_decoder_gs": lambda config, coords, feats: case_slat_decoder_gs.depths_of(config, coords)["out_feats"],
    "slat_decoder_mesh": lambda config, coords, feats: case_slat_decoder_mesh.depths_of(config, coords)["feats"],
}
METHODS = (
    (ConditionEmbedder, "tokens"),
    (StructureFlow, "sample"),
    (StructureDecoder, "logits"),
    (SlatGenerator, "sample"),
    (GaussianDecoder, "__call__"),
    (MeshDecoder, "__call__"),
)
SECOND_HALF = tuple(name for name, model in MODELS.items() if model.stage == 2 and name in SOURCE.config.models)


@dataclass(frozen=True)
class Call:
    """One call of a model: by which method, with what, and what came out."""

    config: Any
    method: str
    arguments: tuple
    options: dict[str, Any]
    result: Any


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls of all models inside, but for `OF_ONE_RUN`."""
    calls: list[Call] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind, method in METHODS:
            patch.setattr(kind, method, _noting(getattr(kind, method), method, calls))
        yield calls


def _noting(call: Callable, method: str, calls: list[Call]) -> Callable:
    def noted(self, *arguments, **options):
        kept = copy.deepcopy(arguments), {name: value for name, value in options.items() if name not in OF_ONE_RUN}
        result = call(self, *arguments, **options)
        calls.append(Call(self.config, method, *kept, result))
        return result

    return noted


def on_device(names: tuple[str, ...], precision: str = "float32") -> Artifacts:
    """The artifacts of the preset, in which some models are compiled for the emulated device."""
    device()
    artifacts, components = copy.copy(tiny_artifacts()), {}

    def load(name: str):
        if name not in names:
            return tiny_artifacts().load(name)
        if name not in components:
            model, config = MODELS[name], getattr(SOURCE.config, name)
            options = {"precision": model.precision(precision, cuda_target()), **model.options(SOURCE.config)}
            components[name] = model.compile(config, SOURCE.state(name), name=name, target=cuda_target(), **options)
        return components[name]

    artifacts.load = load
    return artifacts


def ball(voxels: int) -> Structure:
    """A structure of about so many voxels, which touch each other, around the middle of the grid."""
    resolution = SOURCE.config.slat_generator.resolution
    distance = np.linalg.norm(np.indices([resolution] * 3) - resolution / 2, axis=0)
    places = np.argwhere(distance <= np.sort(distance.ravel())[voxels - 1])
    pose = Pose(np.float32([[1, 0, 0, 0]]), np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))
    coords = np.ascontiguousarray(np.concatenate([np.zeros((len(places), 1)), places], 1), np.int32)
    return Structure(coords, resolution, pose)


def on_cpu(call: Call) -> tuple[str, Any]:
    """The name of a model and what it computes on the CPU of the same arguments."""
    config = tiny_artifacts().config
    name = next(name for name in config.models if getattr(config, name) is call.config)
    model = MODELS[name].open(tiny_artifacts().load(name), call.config)
    return name, getattr(type(model), call.method)(model, *call.arguments, **call.options)


def compared(call: Call, precision: str = "float32") -> Iterator[Comparison]:
    """The results of a call against the CPU's: float32 by its depth, other precisions by the bounds of `validate`. A sampler
    adds a velocity with guidance s times (1 + s), and another one s times."""
    name, expected = on_cpu(call)
    guidance = next((value for value in (*call.arguments, *call.options.values()) if hasattr(value, "strength")), None)
    gain = 1 if guidance is None else 1 + 2 * guidance.strength
    depth = DEPTHS[name](call.config, *call.arguments, **call.options) * gain**2
    for part, (mine, theirs) in _parts(call.result, expected).items():
        found = compare(mine, theirs, depth, name=f"{name}{part}")
        if precision != "float32" and theirs.dtype.kind == "f" and not found.problem.startswith(("shape", "dtype")):
            most, l2 = (gain * bound for bound in BOUNDS["float16" if precision == "tf32" else precision])
            size = np.abs(theirs).max(initial=0.0)
            problem = f"relative L2 above {l2:.2e}, or above {most:.2e} of the largest value"
            ok = found.l2_error <= l2 and found.max_error <= most * size
            found = Comparison(found.name, found.shape, found.max_error, found.l2_error, most * size, "" if ok else problem)
        yield found


def _parts(mine, theirs) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if isinstance(theirs, dict):
        return {f".{key}": (mine[key], theirs[key]) for key in theirs}
    if isinstance(theirs, tuple):
        return {f".{i}": pair for i, pair in enumerate(zip(mine, theirs, strict=True))}
    return {"": (mine, theirs)}


def main(arguments: list[str] | None = None) -> int:
    """0 if everything is as the CPU has it."""
    parser = argparse.ArgumentParser(description="The tiny pipeline on the emulated CUDA device, against the CPU.")
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32", "float16", "bfloat16"))
    parser.add_argument("--voxels", type=int, default=300, help="of the second half")
    parser.add_argument("--first-half", action="store_true", help="the first half, too: ten minutes")
    options = parser.parse_args(arguments)
    wrong = 0

    def run(names: tuple[str, ...], **given) -> None:
        nonlocal wrong
        pipeline = Pipeline(on_device(names, options.precision))
        told = lambda progress: print(f"  {progress.stage} {progress.done}/{progress.total}", file=sys.stderr, flush=True)  # noqa: E731
        with recorded() as calls:
            pipeline.generate(disc_photo(), seed=3, steps=1, on_progress=told, **given)
        for call in calls:
            for found in compared(call, options.precision):
                wrong += not found.ok
                errors = f"max error {found.max_error:.2e}, bound {found.bound:.2e}, L2 {found.l2_error:.2e}"
                print(f"{found.name}: {errors} {found.problem}")

    if options.first_half:
        run(tuple(name for name in SOURCE.config.models if name not in SECOND_HALF), stage1_only=True)
    run(SECOND_HALF, structure=ball(options.voxels))
    print("something is wrong" if wrong else "all is right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
