"""Kernels that move vectors: the same result for tensors that begin anywhere, and for rows that are no whole vectors."""

import numpy as np
import pytest
import tvm

from tests.cuda_device import cuda_target, device
from tests.tolerance import assert_close
from tir_kernels.dispatch import kernel_for
from tir_kernels.guards import NOWHERE, STATUS_FIRST, STATUS_SIZE
from tir_kernels.spec import Spec
from tir_kernels.spec.activation import Activation
from tir_kernels.spec.gather_rows import GatherRows


def kernel_of(spec: Spec):
    device()
    function = kernel_for(spec, cuda_target()).function
    return tvm.compile(tvm.IRModule({"kernel": function}), target=cuda_target())["kernel"]


def shifted(array: np.ndarray, elements: int):
    """A tensor on the device that holds `array`, some elements behind where a vector may begin."""
    flat = np.concatenate([np.zeros(elements, array.dtype), array.reshape(-1)])
    tensor = tvm.runtime.tensor(flat, device())
    return tensor._create_view(array.shape, str(array.dtype), elements * array.dtype.itemsize)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("elements", [0, 1])
def test_rows(dtype, elements):
    status = np.zeros(STATUS_SIZE, "int64")
    status[STATUS_FIRST] = NOWHERE
    rng = np.random.default_rng(0)
    for channels in (3, 8, 24):
        function = kernel_of(GatherRows(channels, dtype))
        x, index = rng.standard_normal((40, channels)).astype(dtype), rng.integers(-1, 40, 300).astype("int32")
        out = shifted(np.full((300, channels), np.nan, dtype), elements)
        given = shifted(x, elements), tvm.runtime.tensor(index, device()), tvm.runtime.tensor(status, device())
        function(*given, out)
        np.testing.assert_array_equal(out.numpy(), np.where(index[:, None] >= 0, x[index], 0))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("elements", [0, 1])
def test_activations(dtype, elements):
    function = kernel_of(Activation(1, "relu", dtype))
    for count in (0, 1, 7, 8, 2051):
        x = np.random.default_rng(count).standard_normal(count).astype(dtype)
        out = shifted(np.full(count, np.nan, dtype), elements)
        function(shifted(x, elements), out)
        assert_close(out.numpy(), np.maximum(x, 0), dtype=dtype)
