"""Norms of states, and checks of the numbers of settings."""

import math

import numpy as np

from sam3d_tvm.sampler import Sample


def norms(state: Sample, other: Sample | None = None) -> np.ndarray:
    """The Euclidean norm of every array of a state, or of its difference from another one, float64 [arrays].

    The same bits with any number of threads, which `numpy.linalg.norm` does not promise.
    """
    arrays = list(state.values()) if isinstance(state, dict) else [state]
    if other is not None:
        others = [other[name] for name in state] if isinstance(state, dict) else [other]
        arrays = [np.subtract(a, b, dtype=np.float64) for a, b in zip(arrays, others, strict=True)]
    return np.array([math.sqrt(np.square(array, dtype=np.float64).sum()) for array in arrays])


def check_number(name: str, value: float, least: float, most: float = math.inf) -> None:
    """ValueError unless `value` is a number from `least` to `most`, both included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name}: expected a number of at least {least:g}{upper}, given {value!r}")
