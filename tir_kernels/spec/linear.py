"""The linear layer over rows: `out = act(gate[b] * (x @ weight.T + bias) + residual)`.

b is 0, or the batch element that a row belongs to. Sums are float32.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .activation import ACTIVATIONS

TF32 = "tf32"  # float32 by factors of 11 bits, as tensor cores take them
INTEGERS = ("int8", "int7")
OF_FLOATS = ("float", TF32)
PRODUCTS = (*OF_FLOATS, *INTEGERS)


def naive(x, weight, bias=None, residual=None, activation="none", gate=None, batch_index=None):
    """Oracle, in float64. x [N, Cin], weight [Cout, Cin], bias [Cout], residual [N, Cout], gate [B, Cout] -> [N, Cout]."""
    out = x.astype(np.float64) @ weight.astype(np.float64).T
    return epilogue(out, bias, residual, activation, gate, batch_index)


def epilogue(out, bias=None, residual=None, activation="none", gate=None, batch_index=None):
    """What follows the products `out` float64 [N, Cout], in float64."""
    if bias is not None:
        out = out + bias.astype(np.float64)
    if gate is not None:
        out = out * gate.astype(np.float64)[np.zeros(len(out), int) if batch_index is None else batch_index]
    if residual is not None:
        out = out + residual.astype(np.float64)
    return ACTIVATIONS[activation](out)


@dataclass(frozen=True)
class Linear(Spec):
    """(x, weight, bias, [residual,] [gate,] [batch_index,] out).

    x `dtype` [N, cin]; weight `dtype` [cout, cin], packed; bias float32 [cout]; residual `dtype` [N, cout]; gate float32
    [B, cout], of which a row takes the first, or that of batch_index int32 [N]: ValueError for an index outside of 0 .. B - 1;
    out [N, cout] of `out_dtype`, by default `dtype`; `activation`: one of `ACTIVATIONS`.

    `products`, one of `PRODUCTS`: "int8" for integer products of at least 8 bits where the CPU gains by them, "int7" for at
    least 7 bits of x; the layer is then computed as `spec.int8_linear` says. Where nothing is gained it is computed as "float".
    "tf32", of float32: each factor is rounded to 11 bits, of which no CPU has kernels; of narrower types it is "float".
    """

    family: ClassVar[str] = "linear"
    cin: int
    cout: int
    dtype: str = "float32"
    has_residual: bool = False
    activation: str = "none"
    has_gate: bool = False
    has_index: bool = False
    out_dtype: str | None = None
    products: str = "float"
