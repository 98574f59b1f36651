"""Kernels of descriptions on the emulated device: compiled, and called with numpy arrays."""

import functools
from collections.abc import Sequence

import numpy as np
import tvm

from tests.cuda_device import cuda_target, device
from tir_kernels.dispatch import kernel_for
from tir_kernels.guards import NOWHERE, REPORTS, STATUS_FIRST, STATUS_SIZE, read_status
from tir_kernels.spec import Spec


@functools.cache
def _compiled(spec: Spec):
    device()
    function = kernel_for(spec, cuda_target()).function
    return compiled(function), REPORTS in function.attrs


def compiled(function: tvm.tirx.PrimFunc):
    """A kernel as a function of tensors on the device."""
    device()
    name = str(function.attrs["global_symbol"])
    return tvm.compile(tvm.IRModule({name: function}), target=cuda_target())[name]


def run(spec: Spec, inputs: Sequence, outputs: Sequence[tuple], read: bool = True) -> list[np.ndarray]:
    """What the kernel of `spec` makes of arrays and numbers; `outputs`: shape and dtype of each.

    ValueError of what it refuses, unless told not to `read` that.
    """
    function, reports = _compiled(spec)
    given = [tvm.runtime.tensor(x, device()) if isinstance(x, np.ndarray) else x for x in inputs]
    made = [tvm.runtime.empty(shape, dtype, device()) for shape, dtype in outputs]
    status = np.zeros(STATUS_SIZE, "int64")
    status[STATUS_FIRST] = NOWHERE
    status = tvm.runtime.tensor(status, device())
    function(*given, *([status] if reports else []), *made)
    if reports and read:
        read_status(status)
    return [out.numpy() for out in made]
