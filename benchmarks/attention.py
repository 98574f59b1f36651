"""Attention against torch's `scaled_dot_product_attention` on the same machine.

    python -m benchmarks.attention [--quick] [--json FILE] [--only SUBSTRING]

    self_, cross_, few_<queries>x<keys>   16 heads of 64 channels, one segment
    windows_nut64_<heads>                 windows of 8^3 of real voxels in their given order, heads of 64 channels

torch has every head's rows together, as suits it best. In windows its peers are a loop over the windows, of rows gathered
once and scattered once, and, for one head, attention of all voxels under a mask. bfloat16 is bfloat16 storage on both sides.
"""

import functools
import itertools
import sys
from collections.abc import Callable

import numpy as np
import torch

from sparse_ops import op
from tests.tolerance import compare
from tir_kernels.spec.attention import naive
from tir_kernels.spec.windows import naive as window_partition

from .dense import as_numpy, as_torch, compiled, normal, torch_peer
from .harness import Benchmark, Case, parse_options
from .sparse_conv import coords_of

HEADS, DEPTH = 16, 64
LENGTHS = {"self": [(4096, 4096), (1374, 1374)], "cross": [(4096, 5500)], "few": [(4, 4100)]}
SAMPLED = 64  # queries that are compared with float64
SAMPLED_WINDOWS = 16


def by_head(array: np.ndarray) -> torch.Tensor:
    """[N, H, D] -> [1, H, N, D], copied."""
    return as_torch(array).transpose(0, 1)[None].contiguous()


def by_row(out: torch.Tensor) -> torch.Tensor:
    """[1, H, N, D] -> [N, H, D]"""
    return out[0].transpose(0, 1)


def check_of(rows: np.ndarray, expected: np.ndarray, keys: int, dtype: np.dtype) -> Callable:
    """check(result): these rows against the oracle; a bfloat16 result is a float32 sum rounded once."""

    def check(result):
        out = by_row(result) if isinstance(result, torch.Tensor) and result.ndim == 4 else result
        yield compare(as_numpy(out)[rows], expected, keys if dtype == "float32" else 1, dtype=dtype, name="sampled queries")

    return check


def one_segment(queries: int, keys: int, dtype: str) -> Case:
    """All queries see all keys."""
    q, k, v = (normal(seed, rows, HEADS, DEPTH, dtype=dtype) for seed, rows in enumerate((queries, keys, keys)))
    q_offsets, k_offsets = (np.array([0, rows], "int32") for rows in (queries, keys))
    sample = np.random.default_rng(3).permutation(queries)[:SAMPLED]
    expected = naive(q[sample], k, v, [0, len(sample)], k_offsets)
    check = check_of(sample, expected, keys, q.dtype)
    there = [by_head(array) for array in (q, k, v)]
    return Case(
        dtype,
        compiled(op.attention, q, k, v, q_offsets, k_offsets, constants=0),
        check,
        torch_peer(lambda: torch.nn.functional.scaled_dot_product_attention(*there), None if dtype == "bfloat16" else check),
        flops=4.0 * queries * keys * HEADS * DEPTH,
    )


def windows(heads: int, dtype: str, masked: bool) -> Case:
    """Windows of 8^3 voxels, the partition ready; `masked`: against attention of all voxels, else against a loop."""
    order, offsets = window_partition(coords_of("nut_64"))
    sizes = np.diff(offsets)
    q, k, v = (normal(seed, len(order), heads, DEPTH, dtype=dtype) for seed in range(3))
    sample, sampled_offsets = order[: offsets[SAMPLED_WINDOWS]], offsets[: SAMPLED_WINDOWS + 1]
    expected = naive(q[sample], k[sample], v[sample], sampled_offsets, sampled_offsets)
    check = check_of(sample, expected, sizes.max(), q.dtype)
    rows, ends = torch.from_numpy(order).long(), offsets.tolist()
    attend = torch.nn.functional.scaled_dot_product_attention

    def loop():
        parts = [as_torch(array)[rows].transpose(0, 1)[None] for array in (q, k, v)]
        found = [attend(*(part[:, :, a:b] for part in parts)) for a, b in itertools.pairwise(ends)]
        out = torch.empty(q.shape, dtype=parts[0].dtype)
        out[rows] = by_row(torch.cat(found, dim=2))
        return out

    if masked:
        window = torch.empty(len(order), dtype=torch.long)
        window[rows] = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
        mask, there = window[:, None] == window, [by_head(array) for array in (q, k, v)]
        peer = torch_peer(lambda: attend(*there, attn_mask=mask), None if dtype == "bfloat16" else check)
    else:
        peer = torch_peer(loop, None if dtype == "bfloat16" else check)
    return Case(
        dtype,
        compiled(
            lambda q, k, v, offsets, order: op.attention(q, k, v, offsets, offsets, None, order, order),
            q,
            k,
            v,
            offsets,
            order,
            constants=0,
        ),
        check,
        {"masked" if masked else "loop": peer["torch"]},
        flops=4.0 * (sizes.astype(float) ** 2).sum() * heads * DEPTH,
        facts={"voxels": len(order), "windows": len(sizes)},
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse_options("Attention against torch.", arguments)
    bench = Benchmark("attention", options)
    for dtype in ("float32", "bfloat16"):
        for name, lengths in LENGTHS.items():
            for queries, keys in lengths[-1:] if options.quick else lengths:
                bench.run(f"{name}_{queries}x{keys}", functools.partial(one_segment, queries, keys, dtype))
        bench.run("windows_nut64_12heads", functools.partial(windows, 12, dtype, masked=False))
        if not options.quick:
            bench.run("windows_nut64_1head", functools.partial(windows, 1, dtype, masked=True))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
