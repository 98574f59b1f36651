"""On which device compiled code runs: the CPU, or a CUDA device by its number.

A target says what code is compiled for, and not on which of several devices it runs: that is the device of `use_device`, by
default the first.

SPARSE_OPS_CUDA_GRAPHS=1 is `use_cuda_graphs()` from the start.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import tvm
import tvm_ffi

from tir_kernels.cuda.gpu import Gpu
from tir_kernels.dispatch import host_target
from tir_kernels.spec.linear import TF32

HOST = tvm.cpu()
CPU, CUDA = "cpu", "cuda"  # names of kinds of devices, as `parse_target` takes them
_number = 0  # of the CUDA device that is used
_graphs = os.environ.get("SPARSE_OPS_CUDA_GRAPHS") == "1"  # whether CUDA graphs are
_tf32 = False  # whether eager calls multiply float32 so
_scope: ContextVar[int | None] = ContextVar("device", default=None)  # the one inside of `using`


def use_device(number: int) -> None:
    """Code for CUDA that is compiled or loaded from now on runs on the device of that number. ValueError if there is none."""
    global _number
    cuda_device(number)
    _number = number


def device_in_use() -> int:
    """The number of the CUDA device that code runs on."""
    inside = _scope.get()
    return _number if inside is None else inside


def use_cuda_graphs(on: bool = True) -> None:
    """Whether what is compiled for CUDA from now on can be captured, and `graphs.Captured` does it. Off unless asked for."""
    global _graphs
    _graphs = on


def cuda_graphs_in_use() -> bool:
    """What `use_cuda_graphs` was last told."""
    return _graphs


def use_tf32(on: bool = True) -> None:
    """Whether eager calls on a CUDA device multiply float32 as TF32 from now on, as `build(precision="tf32")` does. Off unless
    asked for; calls on a CPU stay as they are."""
    global _tf32
    _tf32 = on


def eager_precision() -> str:
    """The precision of eager calls for the target in scope, one of `transform.precision.PRECISIONS`."""
    return TF32 if _tf32 and place()[0] == CUDA else "float32"


@contextmanager
def using(device: tvm.runtime.Device) -> Iterator[None]:
    """Inside, code is compiled for a CUDA device and runs on it."""
    token = _scope.set(device.index)
    try:
        with cuda_target():
            yield
    finally:
        _scope.reset(token)


def cuda_device(number: int | None = None) -> tvm.runtime.Device:
    """The CUDA device of a number, by default that of `use_device`. ValueError, with what is missing, where there is none."""
    number = device_in_use() if number is None else number
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"device: expected the number of a CUDA device, 0 or more, given {number!r}")
    if tvm.get_global_func("device_api.cuda", allow_missing=True) is None:
        raise ValueError(
            "device: expected a CUDA device, given a machine on which TVM finds no CUDA: it needs NVIDIA's driver "
            "(libcuda.so.1) and the runtime of CUDA 13 (libcudart.so.13)"
        )
    device = tvm.cuda(number)
    if not device.exist:
        count = next(n for n in range(number + 1) if not tvm.cuda(n).exist)
        expected = f"the number of a CUDA device, below {count}" if count else "a CUDA device, of which the driver finds none"
        raise ValueError(f"device: expected {expected}, given {number}")
    return device


def cuda_target(number: int | None = None) -> tvm.target.Target:
    """The target of a CUDA device, by default that of `use_device`, whose host is this machine. ValueError as `cuda_device`."""
    return cuda_target_of("sm_" + str(cuda_device(number).compute_version).replace(".", ""))


def cuda_target_of(arch: str) -> tvm.target.Target:
    """The target of CUDA devices of an architecture, "sm_90" for example, with this machine as host.

    Code is compiled for it on any machine. ValueError for another form, and for one that is too old.
    """
    if problem := Gpu.named(arch).problem():
        raise ValueError(f"target: {problem}")
    return tvm.target.Target({"kind": CUDA, "arch": arch, "host": host_target().export()})


def parse_target(text: str) -> tvm.target.Target:
    """The target of a text: "cpu", this machine's; "cuda", that of the CUDA device in use; "cuda:sm_90", that of devices of an
    architecture, which this machine may not have.

    ValueError for anything else, and for "cuda" where there is no device.
    """
    kind, _, arch = text.partition(":")
    if text == CPU:
        return host_target()
    if kind == CUDA:
        return cuda_target_of(arch) if arch else cuda_target()
    raise ValueError(f"target: expected 'cpu', 'cuda', or 'cuda:' and an architecture such as sm_90, given {text!r}")


def place() -> tuple[str, int]:
    """Where code for the target in scope runs: "cpu" or "cuda", and the number of the device."""
    target = tvm.target.Target.current(allow_none=True)
    return (CPU, 0) if target is None or target.kind.name != CUDA else (CUDA, device_in_use())


def device_for(code: tvm.runtime.Module) -> tvm.runtime.Device:
    """Where code runs: on the CUDA device in use if it holds kernels for one, else on the CPU."""
    return cuda_device() if _has_kernels(code) else tvm.cpu()


def _has_kernels(module: tvm.runtime.Module) -> bool:
    return module.kind == CUDA or any(_has_kernels(imported) for imported in module.imports)


def is_on(tensor: tvm.runtime.Tensor, device: tvm.runtime.Device) -> bool:
    """Whether a tensor lies in the memory of a device."""
    return tensor.device == device


def placed(value, device: tvm.runtime.Device):
    """A tensor, or a tuple or list of such, in the memory of a device: what lies elsewhere is copied. Other values stay."""
    if isinstance(value, tvm.runtime.Tensor):
        return value if is_on(value, device) else value.copyto(device)
    if type(value) in (tuple, list, tvm_ffi.Array):  # a shape is a tuple, too
        return tuple(placed(part, device) for part in value)
    return value
