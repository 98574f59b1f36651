""".splat files, as antimatter15's viewer made them common: 32 bytes a Gaussian and nothing else.

A row: position and scale, float32 [3] each; red, green, blue and opacity, uint8 [4]; a unit quaternion (w, x, y, z) as
128 (1 + q), uint8 [4]. Rows are in the order of size times opacity, the largest first, so that a file that is still being
fetched shows something. Viewers take y as down, so that is how it is written: `frames.OPENCV`. There is no place for numbers of
objects.
"""

from pathlib import Path

import numpy as np

from sam3d_tvm.frames import OPENCV
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, LARGEST_LOG_SCALE, Gaussians

ROW = 32  # bytes
LEAST_SCALE = np.float32(1e-37)  # whose logarithm is finite
LEAST_OPACITY = 1 / 1020  # what 0 of 255 is read as, and 255 as far from 1: a quarter of a step


def rows(gaussians: Gaussians) -> np.ndarray:
    """uint8 [N, 32], in the order and the axes of the Gaussians."""
    table = np.zeros((len(gaussians), ROW), np.uint8)
    table[:, :24] = np.concatenate([gaussians.xyz, gaussians.scaling], 1).astype("<f4").view(np.uint8)
    table[:, 24:28] = np.rint(255 * np.concatenate([gaussians.colors, gaussians.opacity[:, None]], 1))
    table[:, 28:] = np.clip(np.rint(128 * gaussians.rotation + 128), 0, 255)
    return table


def encode(gaussians: Gaussians) -> bytes:
    """The rows of a file, for Gaussians in `OPENCV`."""
    # The logarithm of size times opacity: neither overflows.
    size = gaussians.log_scaling.astype(np.float64).sum(1) - np.logaddexp(0, -gaussians.opacity_logit.astype(np.float64))
    return rows(gaussians)[np.argsort(-size, kind="stable")].tobytes()


def read(path: Path) -> Gaussians:
    """ValueError for a file that is not whole rows, for values that are not finite, scales that are negative or too large, and
    quaternions of length 0."""
    size = path.stat().st_size
    if size % ROW:
        raise ValueError(f"path: expected a .splat file of {ROW} bytes a Gaussian, given {str(path)!r} of {size:,} bytes")
    table = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, ROW)
    floats = np.ascontiguousarray(table[:, :24]).view("<f4").astype(np.float32)
    scaling = floats[:, 3:]
    if not ((scaling >= 0) & (scaling <= np.exp(LARGEST_LOG_SCALE))).all():  # nor NaN
        raise ValueError(f"scale: expected numbers from 0 to {np.exp(LARGEST_LOG_SCALE):.3g}")
    return Gaussians(
        xyz=floats[:, :3],
        features_dc=(table[:, 24:27] / 255 - 0.5) / CONSTANT_HARMONIC,
        opacity_logit=logits(table[:, 27]),
        log_scaling=np.minimum(np.log(np.maximum(scaling, LEAST_SCALE)), LARGEST_LOG_SCALE),
        quaternion=(table[:, 28:].astype(np.float32) - 128) / 128,
        frame=OPENCV,
    )


def logits(steps: np.ndarray) -> np.ndarray:
    """Logits of opacities in steps of 1/255, kept from infinity at both ends: float64 of the same shape."""
    opacity = np.clip(steps / 255, LEAST_OPACITY, 1 - LEAST_OPACITY)
    return np.log(opacity / (1 - opacity))
