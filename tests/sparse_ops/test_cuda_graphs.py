"""CUDA graphs on the emulated device: the same bits as without, whatever is captured, and what is not captured runs as ever."""

import threading

import numpy as np
import pytest
import tvm

from sparse_ops import devices, graphs, op
from sparse_ops.build import build
from sparse_ops.graphs import Captured
from tests import cuda_emulator
from tests.cuda_device import cuda_target, device
from tests.sparse_ops.walk import CASES, case_id, example_module, example_of, module_of

rng = np.random.default_rng(5)


class EmulatedCuda:
    """In the place of `graphs.Cuda`."""

    def begin(self, device):
        cuda_emulator._call("graph_begin")
        return 1

    def end(self, stream, device):
        return cuda_emulator._call("graph_end")

    def copy(self, to, source, size, stream):
        cuda_emulator._call("graph_copy", to, source, size)

    def launch(self, handle, device):
        cuda_emulator._call("graph_launch", handle)

    def destroy(self, handle):
        cuda_emulator._call("graph_destroy", handle)


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    device()
    emulated = EmulatedCuda()
    monkeypatch.setattr(graphs, "cuda", lambda: emulated)
    devices.use_cuda_graphs()
    yield
    devices.use_cuda_graphs(False)


def launches():
    return sum(figures["launches"] for figures in cuda_emulator.statistics().values())


NAMES = ("attention-float16", "dense_group_norm-float32", "group_norm-float32", "layer_norm-float16", "linear-float32")


@pytest.mark.parametrize("case", [case for case in CASES if case_id(case) in NAMES], ids=case_id)
def test_ops_give_the_bits_of_calls_without_graphs(case):
    row, dtype = case
    program = build(example_module(row, dtype), cuda_target())
    devices.use_cuda_graphs(False)
    plain = build(example_module(row, dtype), cuda_target())
    devices.use_cuda_graphs()
    captured = Captured(lambda *args: graphs.tensors_of(program["main"](*args)), device())
    for rows in row.sizes:
        inputs = [np.asarray(array) for array in example_of(row, dtype, rows).inputs]
        expected = [out.numpy().tobytes() for out in graphs.tensors_of(plain["main"](*map(tvm.runtime.tensor, inputs)))]
        for _ in range(3):
            assert [out.tobytes() for out in captured(*inputs)] == expected
    assert captured.graphs == len(row.sizes)
