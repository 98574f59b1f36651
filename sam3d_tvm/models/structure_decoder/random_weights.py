"""Random weights of the structure decoder.

Plain ones make noise of the structure, unless they smooth what lies around a cell.
"""

import numpy as np

from sam3d_tvm.models.random_weights import seeded_arrays
from sam3d_tvm.models.structure_decoder.config import StructureDecoderConfig
from sam3d_tvm.models.structure_decoder.network import NETWORK
from sparse_ops.deploy.weights import LazyArray

OCCUPANCY_BIAS = -0.9
DECODER_SEED = 2  # with it seed 0 makes a pebble
CHILDREN = 8  # of a cell, each from features of its own


def seeded_state(config: StructureDecoderConfig, seed: int = 0) -> dict[str, LazyArray]:
    """Random weights across channels, a smoothing filter across space; all children of a cell begin alike."""
    window = np.float32([0.25, 0.5, 0.25])
    smooth = window[:, None, None] * window[:, None] * window  # [3, 3, 3]

    def smoothed(name: str, array: LazyArray) -> LazyArray:
        def make() -> np.ndarray:
            values = np.asarray(array)
            if name.startswith("blocks.") and ".conv." in name:  # from one resolution to the next
                values = values[: len(values) // CHILDREN].repeat(CHILDREN, axis=0)
            return values.sum((2, 3, 4), keepdims=True) * smooth if values.ndim == 5 else values

        return LazyArray(array.shape, np.float32, make)

    plain = seeded_arrays(NETWORK.shapes(config), seed + DECODER_SEED)
    bias = LazyArray((1,), np.float32, lambda: np.full(1, OCCUPANCY_BIAS, np.float32))
    return {name: smoothed(name, array) for name, array in plain.items()} | {"out_layer.2.bias": bias}
