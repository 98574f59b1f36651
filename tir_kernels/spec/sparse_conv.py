"""Sparse convolution through a kernel map.

    out[o, :] = act(bias + residual[o, :] + sum over taps k, pairs (i, o) of k:  x[i, :] @ weight[:, k].T)

With groups, output channel c reads those input channels only that belong to its group c // (Cout / groups): as many
convolutions side by side as there are groups. With as many groups as input channels it is depthwise.

Sums are float32: bias and residual first, then taps in order.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec
from .activation import ACTIVATIONS


def naive(feats, weight, table, bias=None, residual=None, activation="none", groups=1):
    """Oracle, in float64. feats [N, Cin], weight [K, Cin / groups, Cout], table int32 [K, M] (-1: no input) -> [M, Cout]."""
    out = np.zeros((table.shape[1], weight.shape[2]))
    if bias is not None:
        out += bias.astype(np.float64)
    if residual is not None:
        out += residual.astype(np.float64)
    for tap, rows in zip(weight.astype(np.float64), table, strict=True):
        hit = rows >= 0
        of_groups = zip(np.split(feats[rows[hit]].astype(np.float64), groups, 1), np.split(tap, groups, 1), strict=True)
        out[hit] += np.concatenate([columns @ own for columns, own in of_groups], 1)
    return ACTIVATIONS[activation](out)


class Grouped:
    """Channels of one group, of a description that has `cin`, `cout` and `groups`."""

    @property
    def group_cin(self) -> int:
        """Input channels of a group."""
        return self.cin // self.groups

    @property
    def group_cout(self) -> int:
        """Output channels of a group."""
        return self.cout // self.groups


@dataclass(frozen=True)
class SparseConv(Grouped, Spec):
    """(x, weight, bias, [residual,] the map's arrays, out), for any number of rows.

    x `dtype` [N, cin]; weight `dtype` [cout, *kernel, cin / groups], packed; bias float32 [cout]; residual, out `dtype`
    [M, cout]; `activation`: one of `ACTIVATIONS`. Raises ValueError when the map does not fit the features or the taps.

    `products`: as in `Linear`; with integers the convolution is computed as `spec.int8_sparse_conv` says.
    """

    family: ClassVar[str] = "sparse_conv"
    cin: int
    cout: int
    kernel: tuple[int, int, int]
    dtype: str = "float32"
    has_residual: bool = False
    activation: str = "none"
    groups: int = 1
    products: str = "float"
