"""Parameters of the structured-latent generator: names and shapes, and random ones."""

from sam3d_tvm.models.random_weights import seeded_arrays, shapes_of
from sam3d_tvm.models.slat_generator.config import SlatConfig
from sam3d_tvm.models.slat_generator.network import SlatFlow
from sparse_ops.deploy.weights import LazyArray, State, check_arrays


def parameter_shapes(config: SlatConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the compiled module."""
    return shapes_of(SlatFlow(config))


# Seeded weights are no trained ones, but these let the shape of the voxels, not the noise, decide what comes out.
SEEDED_GAINS = {"input_layer.weight": 0.05, "input_layer.bias": 10.0, "out_layer.weight": 4.0}


def seeded_state(config: SlatConfig, seed: int = 0) -> dict[str, LazyArray]:
    """Random parameters that keep the size of what flows through the model, see `seeded_arrays`."""
    return seeded_arrays(parameter_shapes(config), seed, SEEDED_GAINS)


def check_state(config: SlatConfig, state: State) -> None:
    """ValueError unless `state` has the parameters of this model, see `weights.check_arrays`."""
    check_arrays(parameter_shapes(config), state)
