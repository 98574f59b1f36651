"""The "tiny" generator for the tests, compiled once in a process."""

import functools

import numpy as np

from sam3d_tvm.models.slat_generator import PRESETS, SlatGenerator, compile_model
from sparse_ops.program import Program

CONFIG = PRESETS["tiny"]


@functools.cache
def compiled() -> Program:
    return compile_model(CONFIG)


@functools.cache
def generator() -> SlatGenerator:
    return SlatGenerator.from_preset("tiny", seed=0, vm=compiled())


def voxels(rows: int, seed: int = 0, batch: int = 1, side: int = 8) -> np.ndarray:
    """int32 [rows, 4] of `batch` elements, distinct, in random order within an element."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(batch * side**3)[:rows]
    cells = cells[np.argsort(cells // side**3, kind="stable")]
    return np.stack([cells // side**3, *(cells // side**axis % side for axis in (2, 1, 0))], axis=1).astype(np.int32)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
