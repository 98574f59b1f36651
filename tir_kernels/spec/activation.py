"""Activations: `out = act(x)`, element by element, on their own or fused into the last pass of another kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from math import erfc, pi, sqrt
from typing import ClassVar

import numpy as np

from . import Spec

naive_erfc = np.vectorize(erfc, otypes=[float])  # numpy has none

# Every activation there is, by name, in float64 on numpy arrays.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * naive_erfc(-x * sqrt(0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
}


def naive(x, name: str):
    """Oracle, in float64, of a float array of any shape."""
    return ACTIVATIONS[name](x.astype("float64"))


@dataclass(frozen=True)
class Activation(Spec):
    """(x, out), both `dtype` of one shape with `rank` dimensions of any size; `name`: one of `ACTIVATIONS`."""

    family: ClassVar[str] = "activation"
    rank: int
    name: str
    dtype: str = "float32"
