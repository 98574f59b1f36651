"""What an eager call costs beside its kernels: a submanifold convolution of 99 voxels, with its map ready and with a new one.

    python -m benchmarks.eager

Medians in microseconds: of the whole call, and of the same call where compiled functions return what they returned before,
which leaves Python and what is ours of it.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

import sparse_ops
from sparse_ops.eager import cache
from sparse_ops.program import Function, Program

ROWS, CHANNELS, CALLS = 99, 32, 2000


def median_us(call: Callable[[], object]) -> float:
    """Of `CALLS` calls."""
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e6


class Replayed:
    """A compiled function that runs once and then returns the same again."""

    def __init__(self, function: Function):
        self.function, self.pack, self.result = function, function.pack, None

    def __call__(self, *args):
        if self.result is None:
            self.result = self.function(*args)
        return self.result


def main() -> None:
    side = np.stack(np.meshgrid([0], *[range(5)] * 3, indexing="ij"), -1).reshape(-1, 4)
    coords = np.ascontiguousarray(side[:ROWS], "int32")
    feats = np.random.default_rng(0).standard_normal((ROWS, CHANNELS), dtype=np.float32)
    x, layer = sparse_ops.SparseTensor(feats, coords), sparse_ops.SubMConv3d(CHANNELS, CHANNELS, 3)
    calls = {"map ready": lambda: layer(x), "new map": lambda: layer(sparse_ops.SparseTensor(feats, coords))}
    for call in calls.values():
        call()
    whole = {name: median_us(call) for name, call in calls.items()}
    for program in cache._compiled.values():
        if isinstance(program, Program):
            program._machines.functions["main"] = Replayed(program["main"])
    for name, call in calls.items():
        call()
        print(f"{name}: {whole[name]:.0f} us, of which Python {median_us(call):.0f} us")


if __name__ == "__main__":
    main()
