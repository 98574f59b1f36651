"""Activations that kernels fuse into their last pass: a TIR expression and a numpy oracle for each.

`exp` is our own polynomial, as the C library's is called one lane at a time. Cody–Waite reduction to |r| <= ln(2)/2, then a
degree-6 Taylor polynomial: relative error under 3e-7 over the whole range.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # ln(2) in two parts: the first has trailing zeros, so n * high is exact
EXP_MIN, EXP_MAX = -87.0, 88.0  # beyond these float32 has no normal result; the argument is clamped


def exp(x):
    """Vectorizable float32 exp of a TIR expression; arguments are clamped to [-87, 88]."""
    x = T.max(T.min(x, T.float32(EXP_MAX)), T.float32(EXP_MIN))
    n = T.floor(x * T.float32(LOG2_E) + T.float32(0.5))
    r = x - n * T.float32(LN2_HIGH) - n * T.float32(LN2_LOW)
    polynomial = T.float32(1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        polynomial = polynomial * r + T.float32(coefficient)
    return polynomial * T.reinterpret("float32", (T.Cast("int32", n) + 127) << 23)


def tanh(x):
    """Vectorizable float32 tanh of a TIR expression; absolute error under 2e-7."""
    return T.float32(1) - T.float32(2) / (exp(T.float32(2) * x) + T.float32(1))


def silu(x):
    """x * sigmoid(x)"""
    return x / (T.float32(1) + exp(-x))


def gelu_tanh(x):
    """The tanh approximation of GELU (Hendrycks and Gimpel, arXiv:1606.08415)."""
    inner = T.float32(np.sqrt(2 / np.pi)) * (x + T.float32(0.044715) * x * x * x)
    return T.float32(0.5) * x * (T.float32(1) + tanh(inner))


@dataclass(frozen=True)
class Activation:
    """`emit`: TIR expression to TIR expression, float32; `naive`: the same in float64 on numpy arrays."""

    emit: Callable
    naive: Callable


ACTIVATIONS = {
    "none": Activation(lambda x: x, lambda x: x),
    "relu": Activation(lambda x: T.max(x, T.float32(0)), lambda x: np.maximum(x, 0)),
    "silu": Activation(silu, lambda x: x / (1 + np.exp(-x))),
    "gelu_tanh": Activation(gelu_tanh, lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
}
