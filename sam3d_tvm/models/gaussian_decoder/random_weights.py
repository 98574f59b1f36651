"""Parameters of the Gaussian decoder: names and shapes, and random ones."""

import numpy as np

from sam3d_tvm.models.gaussian_decoder.config import GaussianDecoderConfig
from sam3d_tvm.models.gaussian_decoder.network import GaussianModel
from sam3d_tvm.models.random_weights import seeded_arrays, shapes_of
from sparse_ops.deploy.weights import LazyArray

SEEDED_FEATURES = {"_opacity": 4.0, "_scaling": 1.0}  # on average
SEEDED_GAIN = 0.1  # of all features but colours


def parameter_shapes(config: GaussianDecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the compiled module."""
    return shapes_of(GaussianModel(config))


def seeded_state(config: GaussianDecoderConfig, seed: int = 0) -> dict[str, LazyArray]:
    """Random parameters, see `seeded_arrays`; with them Gaussians are opaque and fill the gaps between voxels."""
    layout = config.representation.layout
    gain, bias = np.full((config.out_channels, 1), SEEDED_GAIN), np.zeros(config.out_channels)
    gain[layout["_features_dc"]] = 1
    for name, value in SEEDED_FEATURES.items():
        bias[layout[name]] = value
    return seeded_arrays(parameter_shapes(config), seed, {"out_layer.weight": gain}, {"out_layer.bias": bias})
