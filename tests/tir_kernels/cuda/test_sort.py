"""Sorted pairs: stable, by any number of bits, around the edges of warps and tiles, the same whatever runs first."""

import numpy as np
import pytest
import tvm

from tests.cuda_device import cuda_target, device
from tests.cuda_emulator import schedule
from tests.tir_kernels.cuda.kernels_of_launches import sort_kernel
from tir_kernels.cuda.gpu import WARP
from tir_kernels.cuda.sort import TILE


def sort_on_device(function, keys, rows) -> list[np.ndarray]:
    out = [tvm.runtime.tensor(np.full_like(array, -7), device()) for array in (keys, rows)]
    function(tvm.runtime.tensor(keys, device()), tvm.runtime.tensor(rows, device()), *out)
    return [array.numpy() for array in out]


CASES = [("int32", 1, False), ("int32", 8, True), ("int64", 17, False), ("int32", 32, True), ("int64", 64, True)]


@pytest.mark.parametrize("dtype, bits, with_rows", CASES)
def test_sorted(dtype, bits, with_rows):
    device()
    function = tvm.compile(tvm.IRModule({"sort": sort_kernel(dtype, bits, with_rows)}), cuda_target())["sort"]
    for count in (0, 1, 2, WARP + 1, TILE - 1, TILE, TILE + 1, 2 * TILE + 77):
        rng = np.random.default_rng(count)
        keys = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, count, dtype)
        keys[: count // 2] = rng.choice(keys[: count // 2 + 1], count // 2)  # equal ones, and bits above those compared
        rows = rng.permutation(count).astype("int32")
        compared = keys.view(f"u{dtype}") & np.array(2**bits - 1, f"u{dtype}")
        order = np.argsort(compared, kind="stable")
        with schedule(1):
            sorted_keys, sorted_rows = sort_on_device(function, keys, rows)
        np.testing.assert_array_equal(sorted_keys, keys[order])
        np.testing.assert_array_equal(sorted_rows, rows[order] if with_rows else order)
    with schedule(2):
        again = sort_on_device(function, keys, rows)
    np.testing.assert_array_equal(again[0], sorted_keys)
    np.testing.assert_array_equal(again[1], sorted_rows)


def test_all_equal():
    """A digit that all keys share, which is what the high ones of small coordinates are."""
    device()
    function = tvm.compile(tvm.IRModule({"sort": sort_kernel("int32", 8, False)}), cuda_target())["sort"]
    keys = np.full(TILE + 40, 255, "int32")
    sorted_keys, rows = sort_on_device(function, keys, np.zeros(len(keys), "int32"))
    np.testing.assert_array_equal(sorted_keys, keys)
    np.testing.assert_array_equal(rows, np.arange(len(keys)))
