"""Arrays by name: the parameters of a model, from files or made when they are asked for."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from sparse_ops.deploy.reading import brief, safetensors_header

# What parameters may be, by the name in a file; all become what those of the model are, float32 as a rule.
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
LISTED = 40  # problems in a message


class LazyArray:
    """An array that is made when it is asked for: `shape`, `dtype` and `make() -> np.ndarray`."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype, make: Callable[[], np.ndarray]):
        self.shape, self.dtype, self._make = tuple(shape), np.dtype(dtype), make

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._make() if dtype is None else self._make().astype(dtype)


State = Mapping[str, np.ndarray | LazyArray]


def load_state(path: str | os.PathLike, prefix: str = "") -> dict[str, LazyArray]:
    """The tensors of a .safetensors file whose names begin with `prefix`, without it; read when they are asked for.

    Raises ValueError when the file cannot be read, see `safetensors_header`.
    """
    path = Path(path)
    try:
        safetensors_header(path)
        file = safetensors.safe_open(path, "np")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"path: expected a .safetensors file, given {str(path)!r}: {error}") from error
    state = {}
    for name in file.keys():  # noqa: SIM118 (no iterator)
        if name.startswith(prefix):
            part = file.get_slice(name)
            dtype = DTYPES.get(part.get_dtype(), np.dtype(object))
            state[name.removeprefix(prefix)] = LazyArray(part.get_shape(), dtype, lambda name=name: file.get_tensor(name))
    return state


def check_arrays(shapes: Mapping[str, Sequence[int]], state: State, argument: str = "state") -> None:
    """ValueError that lists the arrays of `state` that are missing, not known, or of another shape or dtype, up to `LISTED`,
    and names the `argument`.

    They are float32, float16 or bfloat16, and become what those of the model are.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{argument}: expected arrays by name, given {type(state).__name__}")
    problems = [f"{name}: missing, expected {list(shape)}" for name, shape in shapes.items() if name not in state]
    problems += [f"{brief(name, 200)}: not a parameter of this model" for name in state if name not in shapes]
    for name, shape in shapes.items():
        value = state.get(name)
        if value is None:
            continue
        if not isinstance(value, (np.ndarray, LazyArray)):
            problems.append(f"{name}: expected an array, given {type(value).__name__}")
        elif tuple(value.shape) != tuple(shape) or value.dtype not in DTYPES.values():
            problems.append(f"{name}: expected float32 {list(shape)}, given {value.dtype} {list(value.shape)}")
    if problems:
        more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        raise ValueError(f"{argument}: " + "; ".join(problems[:LISTED] + more))
