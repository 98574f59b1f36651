"""Parameters of the mesh decoder: names and shapes, and random ones."""

import numpy as np

from sam3d_tvm.models.mesh_decoder.config import CORNERS, CUBE_CHANNELS, MeshDecoderConfig
from sam3d_tvm.models.mesh_decoder.network import MeshModel
from sam3d_tvm.models.random_weights import seeded_arrays, shapes_of
from sparse_ops.deploy.weights import LazyArray

SEEDED_GAIN = 0.05  # of what decides about the shape


def parameter_shapes(config: MeshDecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the compiled module."""
    return shapes_of(MeshModel(config))


def seeded_state(config: MeshDecoderConfig, seed: int = 0) -> dict[str, LazyArray]:
    """Random parameters, see `seeded_arrays`; with them all cubes are inside, and the mesh encloses the voxels."""
    gain, bias = np.ones((config.out_channels, 1)), np.zeros(config.out_channels)
    gain[:CUBE_CHANNELS], bias[:CORNERS] = SEEDED_GAIN, -1
    return seeded_arrays(parameter_shapes(config), seed, {"out_layer.weight": gain}, {"out_layer.bias": bias})
