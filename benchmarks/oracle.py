"""References for the benchmarks, in numpy: neighbour tables by sorted keys, and convolution of sampled rows in fp64.

The oracles beside the kernels walk rows in Python and suit small tests; these say the same for hundreds of thousands.
"""

import numpy as np

from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.sparse_conv import naive as naive_conv


def keys(coords: np.ndarray) -> np.ndarray:
    """int64 keys in the order of (batch, x, y, z), for coordinates from -32768 to 32767."""
    key = coords[:, 0].astype(np.int64)
    for axis in (1, 2, 3):
        key = (key << 16) | (coords[:, axis].astype(np.int64) + 32768)
    return key


def rows_of(coords: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """int32: the row of `coords` that equals each query, or -1."""
    known, order = keys(coords), np.argsort(keys(coords))
    wanted = keys(queries)
    place = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    row = order[place]
    return np.where(known[row] == wanted, row, -1).astype(np.int32)


def table_of(coords_in: np.ndarray, coords_out: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The neighbour table int32 [taps, M] that the law of kernel maps asks for."""
    table = np.full((geometry.taps, len(coords_out)), -1, np.int32)
    stride = np.array(geometry.stride)
    for tap, offset in enumerate(geometry.offsets()):
        source = coords_out.astype(np.int64)
        exact = np.ones(len(source), bool)
        if geometry.transposed:
            source[:, 1:], rest = np.divmod(source[:, 1:] - offset, stride)
            exact = ~rest.any(axis=1)
        else:
            source[:, 1:] = source[:, 1:] * stride + offset
        table[tap, exact] = rows_of(coords_in, source[exact])
    return table


def table_of_map(pair_in: np.ndarray, pair_out: np.ndarray, segment: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The neighbour table that a kernel map of ours stands for."""
    blocks, taps = segment.shape[0], segment.shape[1] - 1
    block_rows = pair_in.shape[1] // taps
    table = np.full((taps, int(rows[1])), -1, np.int32)
    for block in range(blocks):
        tap = np.repeat(np.arange(taps), np.diff(segment[block]))
        table[tap, block * block_rows + pair_out[block, : len(tap)]] = pair_in[block, : len(tap)]
    return table


def sites_of(coords: np.ndarray, geometry: Geometry, extent: int) -> np.ndarray:
    """The sites of a strided or transposed convolution, ascending; `extent`: cells of the input grid along an axis."""
    stride = np.array(geometry.stride)
    kernel, padding, dilation = (np.array(axis) for axis in (geometry.kernel, geometry.padding, geometry.dilation))
    if geometry.transposed:
        limit = (extent - 1) * stride - 2 * padding + kernel
    else:
        limit = (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    found = []
    for offset in geometry.offsets():
        sites = coords.astype(np.int64)
        if geometry.transposed:
            sites[:, 1:] = sites[:, 1:] * stride + offset
            good = np.ones(len(sites), bool)
        else:
            sites[:, 1:], rest = np.divmod(sites[:, 1:] - offset, stride)
            good = ~rest.any(axis=1)
        good &= (sites[:, 1:] >= 0).all(axis=1) & (sites[:, 1:] < limit).all(axis=1)
        found.append(sites[good])
    return np.unique(np.concatenate(found), axis=0).astype(np.int32)


def convolve(feats: np.ndarray, weight: np.ndarray, table: np.ndarray, groups: int = 1) -> np.ndarray:
    """fp64 convolution of the rows of a neighbour table [taps, M]; weight [Cout, kx, ky, kz, Cin / groups]."""
    per_tap = weight.reshape(weight.shape[0], -1, weight.shape[-1]).transpose(1, 2, 0)
    return naive_conv(feats, per_tap, table, groups=groups)
