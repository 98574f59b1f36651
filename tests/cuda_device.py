"""Where tests of CUDA kernels run: on the emulated device of `tests.cuda_emulator`, which needs no GPU."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tvm

from sparse_ops import devices, graphs
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


@contextmanager
def cuda_graphs() -> Iterator[None]:
    """Inside, CUDA graphs are in use, which the emulator captures and plays."""
    device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "cuda", _Graphs)
        devices.use_cuda_graphs()
        try:
            yield
        finally:
            devices.use_cuda_graphs(False)


class _Graphs:
    """In the place of `graphs.Cuda`."""

    def begin(self, device):
        tvm.get_global_func("cuda_emulator.graph_begin")()
        return 1

    def end(self, stream, device):
        return tvm.get_global_func("cuda_emulator.graph_end")()

    def copy(self, to, source, size, stream):
        tvm.get_global_func("cuda_emulator.graph_copy")(to, source, size)

    def launch(self, handle, device):
        tvm.get_global_func("cuda_emulator.graph_launch")(handle)

    def destroy(self, handle):
        tvm.get_global_func("cuda_emulator.graph_destroy")(handle)
