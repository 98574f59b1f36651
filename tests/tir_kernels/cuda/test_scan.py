"""Prefix sums: around the edges of warps and tiles and of what one block does alone, with the same bits whatever runs first."""

import numpy as np
import pytest
import tvm

from tests.cuda_device import cuda_target, device
from tests.cuda_emulator import schedule
from tests.tir_kernels.cuda.kernels_of_launches import scan_kernel
from tir_kernels.cuda.scan import FEW, PART, TILE


def scanned(function, values, dtype: str) -> np.ndarray:
    sums = tvm.runtime.tensor(np.full(len(values) + 1, -7, dtype), device())
    function(tvm.runtime.tensor(values, device()), sums)
    return sums.numpy()


@pytest.mark.parametrize("dtypes", [("int32", "int32"), ("int32", "int64"), ("int64", "int64")], ids="-".join)
def test_sums(dtypes):
    device()
    function = tvm.compile(tvm.IRModule({"scan": scan_kernel(*dtypes)}), cuda_target())["scan"]
    for count in (0, 1, 31, 32, 33, PART + 1, TILE - 1, TILE, TILE + 1, FEW, FEW + 1, 6 * TILE - 5):
        values = np.random.default_rng(count).integers(-(2**16), 2**16, count).astype(dtypes[0])
        values[: count // 3] *= 2**9 if dtypes[1] == "int64" else 1  # sums beyond int32
        expected = np.concatenate([[0], np.cumsum(values, dtype=dtypes[1])])
        with schedule(1):
            first = scanned(function, values, dtypes[1])
        np.testing.assert_array_equal(first, expected)
    with schedule(2):
        np.testing.assert_array_equal(scanned(function, values, dtypes[1]), expected)
