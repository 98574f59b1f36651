"""The sparse convolution with integer products: what `SparseConv` computes where it has them.

    out[o, :] = act(bias + residual[o, :] + sum over taps k, pairs (i, o) of k:  s[i] * (sums of q[i] * q of k) * (64 s of k))

q and s of a row of x, rotated and rounded, are those of `int8_linear`; so are those of the weight, of each output channel of
each tap for itself. Sums over the input channels are exact in int32, those over taps float32: bias and residual first, then
taps in order. A row of x that holds an infinity or NaN gives NaN in all outputs that it reaches; one of the weight, NaN in its
column of the rows that its tap reaches. No channel is kept apart.
"""

import numpy as np

from .activation import ACTIVATIONS
from .int8_linear import GROUP, levels, quantize


def naive(feats, weight, table, bias=None, residual=None, activation="none", *, bits: tuple[int, int] = (8, 8)):
    """Oracle: integers exact, what follows in float64. Arguments and result as in `sparse_conv.naive`, without groups.

    `bits` of feats and of the weight.
    """
    depth = feats.shape[1]
    q, scale = quantize(feats, levels(depth, bits[0]))
    out = np.zeros((table.shape[1], weight.shape[2]))
    if bias is not None:
        out += bias.astype(np.float64)
    if residual is not None:
        out += residual.astype(np.float64)
    for tap, rows in zip(weight, table, strict=True):
        of_tap, tap_scale = quantize(tap.T, levels(depth, bits[1]))
        reached = rows >= 0
        read = rows[reached]
        # float64 holds these sums, which are below 2^31, exactly
        products = q[read].astype(np.float64) @ of_tap.astype(np.float64).T
        out[reached] += products * scale[read, None].astype(np.float64) * tap_scale.astype(np.float64) * GROUP
    return ACTIVATIONS[activation](out)
