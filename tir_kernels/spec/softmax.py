"""Softmax over the last axis: `out[i, :] = exp(x[i, :] - max) / sum(exp(x[i, :] - max))`, in float32."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive(x):
    """Oracle, in float64. x [..., C] -> [..., C]."""
    x = x.astype(np.float64)
    weights = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
    return weights / weights.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Softmax(Spec):
    """(x, out), both `dtype` [..., C] of one shape with `rank` >= 1 dimensions of any size."""

    family: ClassVar[str] = "softmax"
    rank: int
    dtype: str = "float32"
