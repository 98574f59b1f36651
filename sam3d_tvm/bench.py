"""How long each stage of a pipeline takes, and how much memory: a few steps are measured, all are counted.

A step with guidance calls the model twice and costs more than one without: of three steps the second is one with guidance, the
third one without, and the first has in its time what comes before it; a generator without guidance is measured without. A
velocity that is forecast is no evaluation and costs nothing. Where random weights make no object, voxels of a real one can be
given in place of those that the structure comes to.
"""

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sam3d_tvm.artifacts import Artifacts
from sam3d_tvm.config import Sampling
from sam3d_tvm.pipeline import Progress, Run
from sam3d_tvm.quality import Quality, StagePlan, plan
from sam3d_tvm.sampler import Guidance, flow_schedule

TIME_SCALE = 1000.0
MEASURED_STEPS = 3
FOV = 60.0  # degrees: no focal length is to be found for noise


@dataclass(frozen=True)
class StageCost:
    """Seconds of a stage, as measured and for all of `steps`, of which as many velocities with the condition, and without, are
    evaluated; peak bytes of the process meanwhile, None where not known."""

    stage: str
    seconds: float
    total_seconds: float
    steps: int
    peak_bytes: int | None
    evaluations: tuple[int, int] | None = None


def measure(
    artifacts: Artifacts, coords: np.ndarray | None = None, seed: int = 0, quality: str | Quality | None = None
) -> list[StageCost]:
    """The costs of all stages for one random photo with a point map, in order; that is not the depth model's, which is a stage
    of its own, if there is one.

    coords int32 [N, 4]: voxels for the second half, by default those that the structure comes to. quality: as of
    `Pipeline.steps`. ValueError for one of which only a run can tell how many evaluations it takes.
    """
    config, found = artifacts.config, []
    planned = plan(config, quality)
    for generator in (planned.structure, planned.latents):
        if not generator.is_known:
            raise ValueError(f"quality: expected one whose evaluations are known beforehand, given {generator.saving}")
    clock = _Clock()
    run = Run(artifacts, clock)
    random = np.random.default_rng(seed)
    size = config.preprocessing.size
    rgba = random.integers(0, 256, (size, size, 4), np.uint8)
    rgba[..., 3] = 0
    rgba[size // 4 : -size // 4, size // 4 : -size // 4, 3] = 255
    points = random.standard_normal((size, size, 3), np.float32)

    def stage(name: str, call: Callable, generator: StagePlan | None = None):
        gc.collect()
        reset_peak()
        start = time.perf_counter()
        result = call()
        seconds, peak = time.perf_counter() - start, peak_bytes()
        if generator is None:
            found.append(StageCost(name, seconds, seconds, 1, peak))
        else:
            counted = generator.at_most()
            total = clock.extrapolated(seconds, counted.conditional, counted.unconditional)
            evaluations = counted.conditional, counted.unconditional
            found.append(StageCost(name, seconds, total, generator.sampling.steps, peak, evaluations))
        return result

    if config.depth_model is not None:
        stage("depth", lambda: run.looked_at(rgba, FOV))
    inputs = stage("image", lambda: run.inputs(rgba, None, points))
    tokens = stage("condition of the structure", lambda: run.condition("ss_condition_embedder", inputs.structure))
    first, second = planned.structure, planned.latents
    latents = stage("structure", lambda: run.structure(tokens, seed, few(first), first.shortcut), first)
    voxels, _ = stage("voxels", lambda: run.voxels(latents["shape"]))
    coords = voxels if coords is None else coords
    tokens = stage("condition of the latents", lambda: run.condition("slat_condition_embedder", inputs.slat))
    feats = stage("latents", lambda: run.latents(coords, tokens, seed, few(second)), second)
    if config.slat_decoder_gs is not None:
        stage("gaussians", lambda: run.gaussians("slat_decoder_gs", coords, feats))
    if config.slat_decoder_mesh is not None:
        stage("mesh", lambda: run.mesh(coords, feats))
    return found


def few(generator: StagePlan) -> Sampling:
    """Three steps, all of them evaluated, of which the first two have guidance if any evaluation of `generator` has."""
    sampling = generator.sampling
    if generator.at_most().unconditional == 0:
        return replace(sampling, steps=MEASURED_STEPS, strength=0.0)
    _, second, third, _ = flow_schedule(MEASURED_STEPS, sampling.rescale_t) * TIME_SCALE
    return replace(sampling, steps=MEASURED_STEPS, interval=(0.0, float(second + third) / 2))


def guided_steps(sampling: Sampling) -> int:
    """How many of its steps call the model twice."""
    times = flow_schedule(sampling.steps, sampling.rescale_t)[:-1] * np.float32(TIME_SCALE)
    guidance = Guidance(sampling.strength, sampling.interval)
    return sum(map(guidance.applies, times))


def peak_bytes() -> int | None:
    """The peak of the process' memory since `reset_peak`, None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Begin to look for the peak anew; where that is not allowed it stays that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class _Clock:
    """Takes the time of every step that it is told of."""

    def __init__(self):
        self._times: list[float] = []

    def __call__(self, progress: Progress) -> None:
        if progress.done == 0:
            self._times = []
        self._times.append(time.perf_counter())

    def extrapolated(self, seconds: float, evaluated: int, guided: int) -> float:
        """Of so many evaluated steps, of which so many with guidance, from the seconds of a stage of `few` of them."""
        _, first, second, third = self._times
        measured = 2 if guided else 0
        return seconds + (guided - measured) * (second - first) + (evaluated - guided - (3 - measured)) * (third - second)


def total(costs: Sequence[StageCost]) -> StageCost:
    """Of all stages one after the other."""
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    seconds, totals = (sum(getattr(cost, name) for cost in costs) for name in ("seconds", "total_seconds"))
    return StageCost("in all", seconds, totals, 1, max(peaks, default=None))
