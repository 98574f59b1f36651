"""Convolution after nearest upsampling: the products are made at the coarse sites and added at the fine ones.

    out[o, :] = act(bias + residual[o, :] + sum over taps k, pairs (i, o) of k:  y[parent[i], k, :])
    y[p, k, :] = x[p, :] @ weight[k]

The fine sites of one coarse site hold equal rows, so each product with a tap is needed once for all of them. `y` of all taps
comes from one linear layer with Cout columns a tap; as it is large, taps are cut into groups, and the sums of one group are
the residual of the next.
"""

from dataclasses import dataclass
from typing import ClassVar

from . import Spec, gather_rows, sparse_conv

COLUMNS = 1024  # of `y` at a time, at most, unless a single tap has more: few enough to stay near, enough to multiply fast


def naive(x, weight, table, parent, bias=None, residual=None, activation="none"):
    """Oracle, in float64. x [M, Cin], weight [K, Cin, Cout], table int32 [K, N], parent int [N], -1: none -> [N, Cout]."""
    return sparse_conv.naive(gather_rows.naive(x, parent), weight, table, bias, residual, activation)


def tap_groups(taps: int, cout: int) -> list[range]:
    """Consecutive taps that are multiplied together: as few groups as `COLUMNS` allows, of sizes as equal as possible."""
    count = -(-taps // max(1, COLUMNS // cout))
    return [range(taps * i // count, taps * (i + 1) // count) for i in range(count)]


@dataclass(frozen=True)
class AddTaps(Spec):
    """(y, bias, [residual,] parent, the map's arrays, out), for a map of `taps` taps.

    y float32 [M, len(group) * cout]: the products with the taps of `group`, side by side; bias float32 [cout]; residual
    `residual_dtype` [N, cout], none where that is None; parent int32 [N]: the row of y of each fine site, or -1; out `dtype`
    [N, cout]; `activation`: one of `ACTIVATIONS`. Raises ValueError when the map does not fit or a parent is out of range.
    """

    family: ClassVar[str] = "add_taps"
    cout: int
    taps: int
    group: range
    residual_dtype: str | None = None
    dtype: str = "float32"
    activation: str = "none"
