"""Random parameters of the depth model, of which a photo becomes a bumpy wall in front of a camera, without holes for the most
part."""

import numpy as np

from sam3d_tvm.models.dinov2 import MEAN, STD
from sam3d_tvm.models.moge.config import MogeConfig
from sam3d_tvm.models.random_weights import seeded_arrays
from sparse_ops.deploy.weights import State

BUMPS = 0.1  # of random features in the result, beside what is set here
SEEN = 1.0  # the raw mask, where 0.5 is the threshold, but for bumps
POINTS, MASK = "head.output_block.0.", "head.output_block.1."


def seeded_state(config: MogeConfig, shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    """Parameters of these shapes: x / z and y / z are what the last two channels say, u and v, which a convolution and its
    relu pass on as positive and negative parts."""
    first, last = shapes[f"{POINTS}0.weight"], shapes[f"{POINTS}2.weight"]  # [hidden, C + 2, 3, 3], [3, hidden, k, k]
    middle = last[2] // 2
    parts, sums = np.zeros(first, np.float32), np.zeros(last, np.float32)
    kept = np.ones(first, np.float32)
    kept[:4] = 0
    for axis in range(2):
        for part, sign in enumerate((1, -1)):
            parts[2 * axis + part, first[1] - 2 + axis, 1, 1] = sign
            sums[axis, 2 * axis + part, middle, middle] = sign
    gains = {f"{POINTS}0.weight": kept, f"{POINTS}2.weight": BUMPS, f"{MASK}2.weight": BUMPS}
    addends = {f"{POINTS}0.weight": parts, f"{POINTS}2.weight": sums, f"{MASK}2.bias": SEEN}
    bias = np.ones(first[0], np.float32)
    bias[:4] = 0
    gains[f"{POINTS}0.bias"] = bias
    for name, values in (("image_mean", MEAN), ("image_std", STD)):
        gains[name], addends[name] = 0.0, np.reshape(values, shapes[name])
    return seeded_arrays(shapes, seed, gains, addends)
