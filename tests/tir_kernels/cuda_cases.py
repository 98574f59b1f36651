"""Running CUDA kernels by themselves on the emulated device, and maps for them that need no kernel to make."""

import functools

import numpy as np
import tvm

from tests.cuda_device import cuda_target, device
from tir_kernels.cuda.gpu import on_device
from tir_kernels.guards import NOWHERE, STATUS_FIRST, STATUS_SIZE
from tir_kernels.layout import NeighbourTable


@functools.cache
def compiled(kernel: tvm.tirx.PrimFunc):
    """A kernel as a function of tensors on the device."""
    device()
    return tvm.compile(tvm.IRModule({"main": on_device(kernel).with_attr("global_symbol", "main")}), target=cuda_target())[
        "main"
    ]


def tensor(array: np.ndarray):
    return tvm.runtime.tensor(np.ascontiguousarray(array), device())


def empty_status():
    """A status buffer without an error."""
    status = np.zeros(STATUS_SIZE, "int64")
    status[STATUS_FIRST] = NOWHERE
    return tensor(status)


def call(kernel: tvm.tirx.PrimFunc, inputs, *outputs: tuple) -> list[np.ndarray]:
    """The results of a kernel; `outputs`: shape and dtype of each. The emulated device poisons what is not written."""
    results = [tvm.runtime.empty(shape, dtype, device()) for shape, dtype in outputs]
    compiled(kernel)(*(tensor(x) if isinstance(x, np.ndarray) else x for x in inputs), *results)
    return [result.numpy() for result in results]


def random_table(rng, taps: int, rows_in: int, rows_out: int, share: float = 0.4) -> np.ndarray:
    """int32 [taps, rows_out]: input rows, of which about a `share` is there; some taps meet whole tiles nowhere."""
    if not rows_in:
        return np.full((taps, rows_out), -1, "int32")
    table = np.where(rng.random((taps, rows_out)) < share, rng.integers(0, rows_in, (taps, rows_out)), -1)
    for tap in range(0, taps, 2):
        table[tap, : rows_out // 2] = -1
    return table.astype("int32")


def map_of(table: np.ndarray, rows_in: int, layout: NeighbourTable | None = None, rng=None) -> tuple[np.ndarray, ...]:
    """The arrays of a map with these neighbours; with `rng` rows come in a random order."""
    layout = layout or NeighbourTable()
    taps, rows = table.shape
    shapes = {array.name: array.shape for array in layout.arrays(taps, rows)}
    neighbours, order = np.full(shapes["neighbours"], -1, "int32"), np.full(shapes["order"], -1, "int32")
    for group in range(len(order)):
        order[group, :rows] = np.arange(rows) if rng is None else rng.permutation(rows)
    for tap in range(taps):
        neighbours[tap, :rows] = table[tap, order[tap * len(order) // taps, :rows]]
    tiles = np.full(shapes["tiles"], -7, "int32")  # undefined behind the live ones
    for tile, live in zip(tiles, layout._live_taps(neighbours), strict=True):
        tile[: len(live)] = live
    return neighbours, order, tiles, np.array([rows_in, rows], "int64")
