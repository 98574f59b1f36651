"""Where tests of CUDA kernels run: on the emulated device of `tests.cuda_emulator`, which needs no GPU."""

import functools

import tvm

from tests import cuda_emulator
from tir_kernels.dispatch import host_target


def cuda_target(arch: str = "sm_90") -> tvm.target.Target:
    """A CUDA target whose host is this machine."""
    host = {key: str(value) for key, value in host_target().attrs.items() if key == "mcpu"}
    return tvm.target.Target({"kind": "cuda", "arch": arch, "host": {"kind": "llvm", **host}})


@functools.cache
def device() -> tvm.runtime.Device:
    """The emulated device."""
    cuda_emulator.install()
    return tvm.cuda(0)
