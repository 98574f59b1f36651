"""The pipeline of the preset "random-tiny", compiled once for all tests: workers share the folder and the work."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from sam3d_tvm.artifacts import Artifacts, SeededSource, begin, compile_model, is_made

SHARED = Path(os.environ.get("SPARSE_OPS_CACHE", Path(__file__).parents[2] / "build" / "cache")) / "tiny_pipeline"
SOURCE = SeededSource("random-tiny")


@cache
def tiny_artifacts() -> Artifacts:
    """Compiled models with the weights of seed 0. Nobody writes into their folder."""
    SHARED.parent.mkdir(parents=True, exist_ok=True)
    with locked("begin"):
        begin(SOURCE, SHARED)
    names = list(SOURCE.config.models)
    for wait in (False, True):  # first what nobody else is at, then wait for the others
        for name in names:
            with locked(name, wait) as got:
                if got and not is_made(SOURCE, SHARED, name):
                    compile_model(SOURCE, SHARED, name)
    return Artifacts(SHARED)


def copied_artifacts(folder: Path) -> Path:
    """A copy of them that a test may change: code for other weights is found there, and not compiled again."""
    shutil.copytree(tiny_artifacts().folder, folder)
    return folder


def disc_photo() -> np.ndarray:
    """uint8 [48, 64, 4], a disc in front of noise."""
    rgba = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)
    rows, columns = np.ogrid[:48, :64]
    rgba[..., 3] = np.where((rows - 22) ** 2 + (columns - 30) ** 2 < 200, 255, 0)
    return rgba


@contextmanager
def locked(name: str, wait: bool = True) -> Iterator[bool]:
    """Whether the lock of that name, which processes share, was to be had."""
    with open(SHARED.with_name(f"tiny_pipeline.{name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
