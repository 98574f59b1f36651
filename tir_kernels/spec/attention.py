"""Attention over segments of varying length.

    out[i, h, :] = sum over the keys j of i's segment of softmax_j(scale * q[i, h, :] . k[j, h, :]) * v[j, h, :]

A segment is a batch element or a window: consecutive rows, or rows at consecutive places of an order, which are read and
written where they are.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import Spec


def naive(q, k, v, q_offsets, k_offsets, scale=None, q_order=None, k_order=None):
    """Oracle, in float64. q [Nq, H, D], k, v [Nk, H, D], offsets int [B + 1], orders int [Nq], [Mk] -> [Nq, H, D]."""
    out = np.zeros(q.shape)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q_order = np.arange(len(q)) if q_order is None else q_order
    k_order = np.arange(len(k)) if k_order is None else k_order
    for b in range(len(q_offsets) - 1):
        rows, keys = q_order[q_offsets[b] : q_offsets[b + 1]], k_order[k_offsets[b] : k_offsets[b + 1]]
        if len(keys):
            logits = np.einsum("ihd,jhd->hij", q[rows].astype(np.float64), k[keys].astype(np.float64)) * scale
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[rows] = np.einsum("hij,jhd->ihd", weights, v[keys].astype(np.float64))
    return out


@dataclass(frozen=True)
class Attention(Spec):
    """(q, k, v, q_offsets, k_offsets, [q_order,] [k_order,] out), for any number of rows and segments.

    q, out `dtype` [Nq, heads, depth]; k, v `dtype` [Nk, heads, depth]; q_offsets, k_offsets int32 [B + 1], ascending from 0 to
    Nq and Mk, or ValueError. q_order int32 [Nq]: the queries of segment b are the rows
    q_order[q_offsets[b] : q_offsets[b + 1]]; likewise its keys by k_order int32 [Mk]; without it Mk = Nk.
    Rows out of range, or a row of q that stands there twice, are a ValueError. Queries of a segment without keys get 0.
    `scale`: 1 / sqrt(depth) where it is None. Of depth 0 there is nothing to compute: out has no elements.
    """

    family: ClassVar[str] = "attention"
    heads: int
    depth: int
    dtype: str = "float32"
    scale: float | None = None
    has_q_order: bool = False
    has_k_order: bool = False
