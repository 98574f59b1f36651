"""Random weights of the structure flow.

Plain ones make noise of the structure, unless they tell where the middle is.
"""

import numpy as np

from sam3d_tvm.models.random_weights import seeded_arrays
from sam3d_tvm.models.structure_flow.config import StructureFlowConfig
from sam3d_tvm.models.structure_flow.network import NETWORK
from sparse_ops.deploy.weights import LazyArray

SHAPE_POSITIONS = "latent_mapping.shape.pos_emb"
FLOW_GAINS = {"latent_mapping.shape.input_layer.weight": 0.1, "latent_mapping.shape.out_layer.weight": 8.0}
CONDITION_GAIN = 0.05  # so that every photo makes something
MIDDLE, RADIUS = 8.0, 0.6  # how much a cell's place weighs beside its noise; where it changes sign, in half sides of the grid
DIRECTION_SEED = 8  # with it seed 0 makes a pebble


def seeded_state(config: StructureFlowConfig, seed: int = 0) -> dict[str, LazyArray]:
    """Random weights, of which the positions of the shape tell, beside noise, how far a cell is from the middle of the grid."""
    layers = [f"blocks.{i}.cross_attn.shape.to_out.{kind}" for i in range(config.num_blocks) for kind in ("weight", "bias")]
    state = seeded_arrays(NETWORK.shapes(config), seed, FLOW_GAINS | dict.fromkeys(layers, CONDITION_GAIN))
    positions = state[SHAPE_POSITIONS]

    def make() -> np.ndarray:
        tokens, channels = positions.shape
        side = np.linspace(-1, 1, round(tokens ** (1 / 3)), dtype=np.float32)
        radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(side, side, side, indexing="ij"))).reshape(-1, 1)
        direction = np.random.default_rng([seed, DIRECTION_SEED]).standard_normal((1, channels), dtype=np.float32)
        return np.asarray(positions) + np.float32(MIDDLE) * (np.float32(RADIUS) - radius) * direction

    return state | {SHAPE_POSITIONS: LazyArray(positions.shape, np.float32, make)}
