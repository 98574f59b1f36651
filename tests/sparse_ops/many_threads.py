"""What tests run in processes of their own: calls from many threads at once, and the memory that calls leave behind."""

import ctypes
import functools
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tvm

import sparse_ops
from sparse_ops import functional as F
from sparse_ops.build import Program, build
from sparse_ops.deploy.from_nn import component_from_nn
from sparse_ops.nn import LayerNorm, Linear, Module, SubMConv3d, SymbolicSparseTensor

THREADS, CALLS = 4, 400
SOAK = range(4, 8001, 4)  # 2,000 numbers of voxels
Call = Callable[[], np.ndarray]


def cloud(seed: int, rows: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates int32 [rows, 4] and features float32 [rows, channels]."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(32**3)[:rows]
    coords = np.stack([np.zeros_like(cells), cells // 32**2, cells // 32 % 32, cells % 32], 1).astype("int32")
    return coords, rng.standard_normal((rows, channels), dtype=np.float32)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def layers(number: int) -> Call:
    """Each thread has voxels and layers of its own, and compiles its first call while others do."""
    coords, feats = cloud(number, 200 + 50 * number, 4)
    down = sparse_ops.SparseConv3d(4, 6, 3, 2, padding=1, indice_key="down")
    first, up = sparse_ops.SubMConv3d(6, 6 + number, 3), sparse_ops.SparseInverseConv3d(6 + number, 4, 3, "down")
    return lambda: up(first(down(sparse_ops.SparseTensor(feats, coords, (32, 32, 32))))).feats


def linear(number: int) -> Call:
    x, weight = normal(number, 100 + number, 16), normal(9, 8, 16)
    return lambda: F.linear(x, weight)


@functools.cache
def _shared_layer() -> tuple:
    return sparse_ops.SubMConv3d(8, 8, 3), sparse_ops.Weights(normal(3, 8, 8), normal(4, 8))


def shared(number: int) -> Call:
    """One layer, one pair of weights for all threads."""
    (coords, feats), (layer, weights) = cloud(number, 100 + 100 * number, 8), _shared_layer()
    return lambda: F.linear(layer(sparse_ops.SparseTensor(feats, coords)).feats, weights)


class Network(Module):
    def __init__(self):
        self.conv, self.norm, self.out = SubMConv3d(4, 8, 3), LayerNorm(8), Linear(8, 3)

    def forward(self, feats, coords):
        return self.out(self.norm(self.conv(SymbolicSparseTensor.of(feats, coords)), activation="silu")).feats


SPECS = {"feats": tvm.relax.frontend.nn.spec.Tensor(["n", 4], "float32")}
SPECS["coords"] = tvm.relax.frontend.nn.spec.Tensor(["n", 4], "int32")


@functools.cache
def _program() -> tuple[Program, list[tvm.runtime.Tensor]]:
    module, parameters = Network().export_tvm({"forward": SPECS})
    program = build(module, lift_params=True)
    values = [tvm.runtime.tensor(normal(i, *map(int, p.shape))) for i, (_, p) in enumerate(parameters)]
    return program, program.pack_params("forward", values.__getitem__)


def graph(number: int) -> Call:
    """One compiled module."""
    (coords, feats), (program, packed) = cloud(number, 100 + 100 * number, 4), _program()
    return lambda: program["forward"](tvm.runtime.tensor(feats), tvm.runtime.tensor(coords), *packed).numpy()


@functools.cache
def _component():
    network = Network()
    state = {name: normal(i, *map(int, p.shape)) for i, (name, p) in enumerate(network.named_parameters())}
    return component_from_nn(network, {"forward": SPECS}, "network", state)


def component(number: int) -> Call:
    (coords, feats), shared_by_all = cloud(number, 100 + 100 * number, 4), _component()
    return lambda: shared_by_all(feats, coords)


CASES = {case.__name__: case for case in (layers, linear, shared, graph, component)}


def at_once(calls: list[Call], times: int) -> list[list[np.ndarray]]:
    """Results of `times` calls of each, each in its own thread; they begin together."""
    barrier = threading.Barrier(len(calls))

    def run_one(call: Call) -> list[np.ndarray]:
        barrier.wait()
        return [np.array(call()) for _ in range(times)]

    with ThreadPoolExecutor(len(calls)) as executor:
        return list(executor.map(run_one, calls))


def run(case: str) -> None:
    """Print in how many of `CALLS` calls the bits were those of a call with no other beside it."""
    calls = [CASES[case](number) for number in range(THREADS)]
    found = at_once(calls, CALLS // THREADS)
    expected = [np.array(call()) for call in calls]
    assert all(np.isfinite(array).all() and array.any() for array in expected)
    print(
        sum(result.tobytes() == array.tobytes() for results, array in zip(found, expected, strict=True) for result in results)
    )


def resident_mb() -> float:
    """Memory of this process, without what the C library has been given back."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def soak(case: str) -> None:
    """Print by how many MB the process grows over 2,000 calls, each with another number of voxels."""
    if case == "eager":
        layer = sparse_ops.SubMConv3d(8, 16, 3)

        def call(coords: np.ndarray, feats: np.ndarray) -> None:
            layer(sparse_ops.SparseTensor(feats, coords))

    else:
        program, packed = _program()

        def call(coords: np.ndarray, feats: np.ndarray) -> None:
            program["forward"](tvm.runtime.tensor(feats), tvm.runtime.tensor(coords), *packed)

    coords, feats = cloud(0, SOAK[-1], 8 if case == "eager" else 4)
    call(coords, feats)
    before = resident_mb()
    for rows in SOAK:
        call(coords[:rows], feats[:rows])
    print(resident_mb() - before)


def burst() -> None:
    """Print by how many MB the process grows over 64 threads that each hold 8 MB at the same time, and end."""
    x, weights = normal(0, 2**14, 128), sparse_ops.Weights(normal(1, 128, 128))
    F.linear(x, weights)
    before = resident_mb()
    at_once([lambda: F.linear(x, weights)[:1]] * 64, 2)
    print(resident_mb() - before)
