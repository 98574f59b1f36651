"""Random parameters of the depth model, of which a photo becomes a bumpy hollow in front of a camera, without its corners."""

import numpy as np

from sam3d_tvm.models.dinov2 import MEAN, STD
from sam3d_tvm.models.moge.config import MogeConfig
from sam3d_tvm.models.random_weights import seeded_arrays
from sparse_ops.deploy.weights import State

# The rows of both output blocks: how much random features count, and beside them u, v, and |u| + |v|, which is 1 to 1.4 in
# the corners of a photo.
ROWS = {
    "0": ((0.02, 1, 0, 0), (0.02, 0, 1, 0), (0.5, 0, 0, 0.5)),  # x / z, y / z, the logarithm of z
    "1": ((0.2, 0, 0, -0.8),),  # the raw mask, of which 0.5 is the threshold
}
SEEN = 1.4  # the raw mask in the middle


def seeded_state(config: MogeConfig, shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    """Parameters of these shapes. A convolution and its relu pass on the positive and the negative parts of u and v, the last
    two channels that it reads, and the next one adds them up: so the focal length that fits is about half of the photo's
    diagonal, and the shift is about 0."""
    gains, addends = {}, {}
    for block, rows in ROWS.items():
        first, last = (f"head.output_block.{block}.{layer}." for layer in (0, 2))
        parts, others = np.zeros(shapes[first + "weight"], np.float32), np.ones(shapes[first + "bias"], np.float32)
        sums = np.zeros(shapes[last + "weight"], np.float32)
        others[:4], middle = 0, sums.shape[2] // 2
        for hidden, (axis, sign) in enumerate(((0, 1), (0, -1), (1, 1), (1, -1))):
            parts[hidden, parts.shape[1] - 2 + axis, 1, 1] = sign
            for row, (_, *along, both) in enumerate(rows):
                sums[row, hidden, middle, middle] = sign * along[axis] + both
        noise = np.float32([row[0] for row in rows])
        gains |= {first + "weight": others[:, None, None, None], first + "bias": others}
        gains |= {last + "weight": noise[:, None, None, None], last + "bias": 0}
        addends |= {first + "weight": parts, last + "weight": sums}
    addends["head.output_block.1.2.bias"] = SEEN
    for name, values in (("image_mean", MEAN), ("image_std", STD)):
        gains[name], addends[name] = 0, np.reshape(values, shapes[name])
    return seeded_arrays(shapes, seed, gains, addends)
