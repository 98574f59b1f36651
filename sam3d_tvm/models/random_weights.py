"""Random parameters that keep the size of what flows through a model, and the shapes of those of a `sparse_ops.nn` module."""

from collections.abc import Mapping
from types import MappingProxyType
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike

from sam3d_tvm.checks import check_size
from sparse_ops.deploy.weights import LazyArray
from sparse_ops.nn import Module


def shapes_of(model: Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a model, in the order of the compiled module."""
    return {name: tuple(int(n) for n in p.shape) for name, p in model.named_parameters()}


NOTHING: Mapping[str, ArrayLike] = MappingProxyType({})


def seeded_arrays(
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    gains: Mapping[str, ArrayLike] = NOTHING,
    addends: Mapping[str, ArrayLike] = NOTHING,
) -> dict[str, LazyArray]:
    """Random parameters of these names and shapes; those named in `gains` are multiplied by these, then `addends` are added.

    Weights of a layer keep the size of what flows through it; gains of a norm are around 1, biases around 0. A parameter
    depends on seed, name and shape only. Raises ValueError for a seed that is not an integer of 0 or more.
    """
    check_size("seed", seed, 0)

    def make(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
        if len(shape) > 1 and not name.endswith("gamma"):
            values *= np.float32(np.prod(shape[1:]) ** -0.5)
        else:
            values *= np.float32(0.1)
            values += np.float32(0 if name.endswith("bias") else 1)  # the others are gains
        return values * np.float32(gains.get(name, 1)) + np.float32(addends.get(name, 0))

    return {
        name: LazyArray(shape, np.float32, lambda name=name, shape=shape: make(name, shape)) for name, shape in shapes.items()
    }
