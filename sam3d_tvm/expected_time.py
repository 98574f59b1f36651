"""How long a run is going to take, from what earlier runs of the same models took on this machine.

After a run of both generators its seconds for each evaluation are kept in the user's cache, in a small file for each set of
compiled models and each number of threads, and those of all else together. Structured latents take as long as the object has
voxels, so the estimate is that of an object like the last one. Where there is no cache, nothing is kept and nothing expected.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sam3d_tvm.artifacts import Artifacts
from sam3d_tvm.quality import STAGES
from sparse_ops.deploy.files import write_bytes
from sparse_ops.deploy.reading import read_json
from sparse_ops.eager.cache import cache_folder
from tir_kernels.cpu.threads import threads

REST = "rest"  # all stages but those of the generators


def expected_seconds(artifacts: Artifacts, evaluations: Mapping[str, int]) -> float | None:
    """Of an object for which the generators are evaluated so often, by stage; None where no run has told."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = read_json(_file(artifacts))
        seconds = float(known[REST]) + sum(float(known[stage]) * count for stage, count in evaluations.items())
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    return None


def remember(artifacts: Artifacts, seconds: Mapping[str, float], evaluations: Mapping[str, Mapping[str, int]]) -> None:
    """Keeps what a run took, if it went through both generators: its seconds and evaluations as of `outputs.Result`."""
    if not all(stage in seconds and stage in evaluations for stage in STAGES):
        return
    known = {
        stage: seconds[stage] / (evaluations[stage]["conditional"] + evaluations[stage]["unconditional"]) for stage in STAGES
    }
    known[REST] = sum(value for stage, value in seconds.items() if stage not in STAGES)
    with suppress(OSError, ValueError):
        write_bytes(_file(artifacts), (json.dumps(known) + "\n").encode())


def _file(artifacts: Artifacts) -> Path:
    """ValueError where nothing is kept."""
    folder = cache_folder("sam3d_tvm")
    if folder is None:
        raise ValueError("expected a cache folder, given none")
    of = json.dumps([artifacts.keys, artifacts.precision, artifacts.target, threads()], sort_keys=True)
    return folder / "seconds" / f"{hashlib.sha256(of.encode()).hexdigest()[:32]}.json"
