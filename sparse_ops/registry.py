"""One row an op: what the tests and the benchmarks walk.

A row makes an `Example` of any size: inputs, the call, and what the oracle says. Rows are listed in `OPS`; adding an op
means adding its row here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tvm import relax


@dataclass
class Example:
    """One use of an op.

    `inputs`: arrays in the order of `call`'s arguments. `shapes`: their symbolic shapes, with a name for every dimension
    that may change from run to run, e.g. ("n", 64). `call(*vars)` makes the Relax call. `expected`: the oracle's outputs,
    float64 or integer. `depth`: length of the longest sum behind a value. `flops`: useful floating-point operations.
    """

    inputs: list[np.ndarray]
    shapes: list[tuple]
    call: Callable[..., relax.Expr]
    expected: list[np.ndarray]
    depth: float = 1.0
    flops: float = 0.0


@dataclass(frozen=True)
class OpRow:
    """`example(rng, rows, dtype) -> Example` with about `rows` rows of features of `dtype`; `dtypes`: those it knows."""

    name: str
    example: Callable[[np.random.Generator, int, str], Example]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    sizes: tuple[int, ...] = field(default=(0, 1, 2, 97))


def features(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    """Normal random values, already rounded to `dtype`, so that an oracle sees what the kernel sees."""
    import ml_dtypes

    return rng.standard_normal(shape).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _linear(rng, rows, dtype):
    from tir_kernels.linear import naive

    from .op import linear

    x, w = features(rng, rows, 33, dtype=dtype), features(rng, 70, 33, dtype=dtype)
    bias, residual = features(rng, 70), features(rng, rows, 70, dtype=dtype)
    return Example(
        [x, w, bias, residual],
        [("n", 33), (70, 33), (70,), ("n", 70)],
        lambda x, w, b, r: linear(x, w, b, r, activation="silu"),
        [naive(x, w, bias, residual, "silu")],
        depth=33,
        flops=2.0 * rows * 33 * 70,
    )


OPS = [OpRow("linear", _linear)]
