"""Kernels on the emulated device: compiled, and called with numpy arrays."""

import functools
from collections.abc import Sequence

import numpy as np
import tvm

from tests.cuda_device import cuda_target, device
from tir_kernels.cuda.gpu import Gpu, on_device
from tir_kernels.dispatch import kernel_for
from tir_kernels.guards import NOWHERE, REPORTS, STATUS_FIRST, STATUS_SIZE, read_status
from tir_kernels.spec import Spec

GPU = Gpu.of(cuda_target())


@functools.cache
def _compiled(function: tvm.tirx.PrimFunc):
    device()
    name = str(function.attrs["global_symbol"])
    return tvm.compile(tvm.IRModule({name: function}), target=cuda_target())[name]


@functools.cache
def _function_of(spec: Spec) -> tvm.tirx.PrimFunc:
    return kernel_for(spec, cuda_target()).function


def run(
    kernel: Spec | tvm.tirx.PrimFunc,
    inputs: Sequence,
    outputs: Sequence[tuple[tuple, str]],
    read: bool = True,
    status: np.ndarray | None = None,
) -> list[np.ndarray]:
    """What a kernel, or that of a description, makes of arrays and numbers; `outputs`: shape and dtype of each.

    ValueError of what it refuses, unless told not to `read` that. `status`: what kernels before it wrote, if they refused.
    """
    function = on_device(kernel) if isinstance(kernel, tvm.tirx.PrimFunc) else _function_of(kernel)
    given = [tvm.runtime.tensor(x, device()) if isinstance(x, np.ndarray) else x for x in inputs]
    made = [tvm.runtime.empty([int(dim) for dim in shape], dtype, device()) for shape, dtype in outputs]
    if status is None:
        status = np.zeros(STATUS_SIZE, "int64")
        status[STATUS_FIRST] = NOWHERE
    status = [tvm.runtime.tensor(status, device())] if REPORTS in function.attrs else []
    _compiled(function)(*given, *status, *made)
    if status and read:
        read_status(*status)
    return [out.numpy() for out in made]
