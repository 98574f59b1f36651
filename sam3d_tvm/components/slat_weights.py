"""Parameters of the structured-latent generator: their names and shapes, from files, and from a seed."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import ml_dtypes
import numpy as np
import safetensors

from sam3d_tvm.components.slat_config import SlatConfig, check_size
from sam3d_tvm.components.slat_model import SlatFlow

# What parameters may be, by the name in a file; all become float32.
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


class LazyArray:
    """An array that is made when it is asked for: `shape`, `dtype` and `make() -> np.ndarray`."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype, make: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._make = tuple(shape), np.dtype(dtype), make

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._make() if dtype is None else self._make().astype(dtype)


State = Mapping[str, np.ndarray | LazyArray]


def parameter_shapes(config: SlatConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the compiled module."""
    return {name: tuple(int(n) for n in p.shape) for name, p in SlatFlow(config).named_parameters()}


# Seeded weights are no trained ones, but these let the shape of the voxels, not the noise, decide what comes out.
SEEDED_GAINS = {"input_layer.weight": 0.05, "input_layer.bias": 10.0, "out_layer.weight": 4.0}


def seeded_state(config: SlatConfig, seed: int = 0) -> dict[str, LazyArray]:
    """Random parameters that keep the size of what flows through the model.

    A parameter depends on seed, name and shape only. Raises ValueError for a seed that is not an integer of 0 or more.
    """
    check_size("seed", seed, 0)

    def make(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = np.random.default_rng([seed, crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
        if len(shape) > 1 and not name.endswith("gamma"):
            values *= np.float32(np.prod(shape[1:]) ** -0.5)
        else:
            values *= np.float32(0.1)
            values += np.float32(0 if name.endswith("bias") else 1)  # the others are gains
        return values * np.float32(SEEDED_GAINS.get(name, 1.0))

    return {
        name: LazyArray(shape, np.float32, lambda name=name, shape=shape: make(name, shape))
        for name, shape in parameter_shapes(config).items()
    }


def load_state(path: str | os.PathLike, prefix: str = "") -> dict[str, LazyArray]:
    """The tensors of a .safetensors file whose names begin with `prefix`, without it; read when they are asked for.

    Raises ValueError when the file cannot be read.
    """
    path = Path(path)
    try:
        file = safetensors.safe_open(path, "np")
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"path: expected a .safetensors file, given {str(path)!r}: {error}") from error
    state = {}
    for name in file.keys():  # noqa: SIM118 (no iterator)
        if name.startswith(prefix):
            part = file.get_slice(name)
            dtype = DTYPES.get(part.get_dtype(), np.dtype(object))
            state[name.removeprefix(prefix)] = LazyArray(part.get_shape(), dtype, lambda name=name: file.get_tensor(name))
    return state


def check_state(config: SlatConfig, state: State) -> None:
    """ValueError that lists every parameter of `state` that is missing, not known, or of another shape or dtype.

    Parameters are float32, or float16 or bfloat16, which become float32.
    """
    shapes = parameter_shapes(config)
    problems = [f"{name}: missing, expected {list(shape)}" for name, shape in shapes.items() if name not in state]
    problems += [f"{name}: not a parameter of this model" for name in state if name not in shapes]
    for name, shape in shapes.items():
        value = state.get(name)
        if value is None:
            continue
        if not isinstance(value, (np.ndarray, LazyArray)):
            problems.append(f"{name}: expected an array, given {type(value).__name__}")
        elif tuple(value.shape) != shape or value.dtype not in DTYPES.values():
            problems.append(f"{name}: expected float32 {list(shape)}, given {value.dtype} {list(value.shape)}")
    if problems:
        raise ValueError("state: " + "; ".join(problems))
