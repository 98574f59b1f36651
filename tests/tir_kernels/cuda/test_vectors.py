"""Kernels that move vectors: the same result for tensors that begin anywhere, and for rows that are no whole vectors."""

import ctypes

import numpy as np
import pytest
import tvm
import tvm_ffi

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
    name = str(function.attrs["global_symbol"])
    return tvm.compile(tvm.IRModule({name: function}), target=cuda_target())[name]


class Struct(ctypes.Structure):
    """A DLManagedTensor of DLPack, whose layout is fixed."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


KEPT: list = []  # what tensors look at once more when they are dropped, which may be after everything else of them


class Shifted:
    """A tensor on the device that begins some elements behind where a vector may, as slices of other libraries do."""

    def __init__(self, array: np.ndarray, elements: int):
        self.base = tvm.runtime.tensor(np.concatenate([np.zeros(elements, array.dtype), array.reshape(-1)]), device())
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        code, bits = (2 if array.dtype.kind == "f" else 0), 8 * array.dtype.itemsize
        self.struct = Struct(
            self.base.data_ptr() + elements * array.dtype.itemsize,
            (ctypes.c_int32 * 2)(2, 0),
            array.ndim,
            (ctypes.c_uint8 * 4)(code, bits, 1, 0),
            self.shape,
        )
        KEPT.append((self.struct, self.shape, self.base))
        self.tensor = tvm_ffi.from_dlpack(self)

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(self.struct), b"dltensor", None)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("elements", [0, 1])
def test_rows(dtype, elements):
    status = np.zeros(STATUS_SIZE, "int64")
    status[STATUS_FIRST] = NOWHERE
    rng = np.random.default_rng(0)
    for channels in (3, 8, 24):
        function = kernel_of(GatherRows(channels, dtype))
        x, index = rng.standard_normal((40, channels)).astype(dtype), rng.integers(-1, 40, 300).astype("int32")
        made, given_x = Shifted(np.full((300, channels), np.nan, dtype), elements), Shifted(x, elements)
        given = given_x.tensor, tvm.runtime.tensor(index, device()), tvm.runtime.tensor(status, device())
        function(*given, made.tensor)
        np.testing.assert_array_equal(made.tensor.numpy(), np.where(index[:, None] >= 0, x[index], 0))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("elements", [0, 1])
def test_activations(dtype, elements):
    function = kernel_of(Activation(1, "relu", dtype))
    for count in (0, 1, 7, 8, 2051):
        x = np.random.default_rng(count).standard_normal(count).astype(dtype)
        made, given = Shifted(np.full(count, np.nan, dtype), elements), Shifted(x, elements)
        function(given.tensor, made.tensor)
        assert_close(made.tensor.numpy(), np.maximum(x, 0), dtype=dtype)
