"""Whole modules on the emulated device: several launches, scratch, Relax, files, views, and TVM's own schedules."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.s_tir import dlight
from tvm.script import tirx as T

from tests import cuda_emulator
from tests.cuda_emulator.test_emulator import DEVICE, TARGET, numbers, on_device, run
from tests.cuda_emulator.translate import kernel_names, translate
from tests.tolerance import assert_close

ROOT = Path(__file__).parent.parent.parent


def test_the_device_is_there():
    assert DEVICE.exist and not tvm.cuda(1).exist
    assert (DEVICE.compute_version, DEVICE.warp_size, DEVICE.max_threads_per_block) == ("9.0", 32, 1024)
    cuda_emulator.install()  # a second time changes nothing


def test_host_code_may_not_touch_the_device():
    code = (
        "import ctypes, tvm\n"
        "from tests import cuda_emulator\n"
        "cuda_emulator.install()\n"
        "a = tvm.runtime.empty((4,), 'float32', tvm.cuda(0))\n"
        "a.numpy()\n"
        "ctypes.string_at(a.data_ptr(), 4)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode and "host code reads or writes memory of the device" in done.stderr, done.stderr


def test_tensors_go_there_and_back():
    a = numbers(3, 5)
    there = on_device(a)
    np.testing.assert_array_equal(there.numpy(), a)
    again = tvm.runtime.empty(there.shape, there.dtype, DEVICE)
    there.copyto(again)
    np.testing.assert_array_equal(again.numpy(), a)
    view = tvm.runtime.from_dlpack(there)
    assert view.device == DEVICE
    np.testing.assert_array_equal(view.numpy(), a)
    assert on_device(numbers(0, 4)).numpy().shape == (0, 4)


@T.prim_func(s_tir=True)
def doubled_and_reversed(a_h: T.handle, out_h: T.handle):
    n = T.int64()
    a = T.match_buffer(a_h, (n,), "float32")
    out = T.match_buffer(out_h, (n,), "float32")
    scratch = T.alloc_buffer((n,), "float32", scope="global")
    with T.launch_thread("blockIdx.x", (n + 127) // 128) as block:
        thread = T.launch_thread("threadIdx.x", 128)
        if block * 128 + thread < n:
            scratch[block * 128 + thread] = a[block * 128 + thread] * T.float32(2)
    with T.launch_thread("blockIdx.x", (n + 63) // 64) as block:
        thread = T.launch_thread("threadIdx.x", 64)
        if block * 64 + thread < n:
            out[block * 64 + thread] = scratch[n - 1 - (block * 64 + thread)]


@pytest.mark.parametrize("n", [0, 1, 300])
def test_launches_of_one_function_follow_one_another(n):
    cuda_emulator.clear_statistics()
    a = numbers(n)
    np.testing.assert_array_equal(run(doubled_and_reversed, (n,), "float32", a), 2 * a[::-1])
    launches = [figures["launches"] for figures in cuda_emulator.statistics().values()]
    assert launches == [1, 1]


def graph(dtype: str) -> tvm.IRModule:
    """softmax of a matmul, and its mean, over any number of rows."""
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64")
    x, w = relax.Var("x", relax.TensorType([n, 64], dtype)), relax.Var("w", relax.TensorType([64, 96], dtype))
    with builder.function("main", [x, w]):
        with builder.dataflow():
            y = builder.emit(relax.op.matmul(builder.emit(relax.op.add(x, x)), w))
            y = builder.emit(relax.op.nn.softmax(y, axis=-1))
            result = builder.emit_output(relax.Tuple([y, builder.emit(relax.op.mean(y, axis=1))]))
        builder.emit_func_output(result)
    return builder.get()


def scheduled(mod: tvm.IRModule) -> tvm.IRModule:
    with TARGET:
        mod = relax.transform.LegalizeOps()(mod)
        rules = (
            dlight.gpu.Matmul(),
            dlight.gpu.GEMV(),
            dlight.gpu.Reduction(),
            dlight.gpu.GeneralReduction(),
            dlight.gpu.Fallback(),
        )
        return dlight.ApplyDefaultSchedule(*rules)(mod)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("schedule", [None, scheduled], ids=["default", "dlight"])
def test_a_relax_module_runs_and_is_loaded_from_a_file(tmp_path, dtype, schedule):
    executable = tvm.compile(schedule(graph(dtype)) if schedule else graph(dtype), target=TARGET)
    x, w = numbers(37, 64).astype(dtype) / 8, numbers(64, 96, seed=1).astype(dtype) / 8

    def both(executable):
        machine = relax.VirtualMachine(executable, DEVICE)
        return [part.numpy() for part in machine["main"](on_device(x), on_device(w))]

    softmax, mean = cuda_emulator.same_bits(lambda: both(executable))
    y = 2 * x.astype(np.float64) @ w.astype(np.float64)
    e = np.exp(y - y.max(1, keepdims=True))
    expected = e / e.sum(1, keepdims=True)
    scale = np.abs(y).max()  # an error of y is one of its exponential, relatively
    assert_close(softmax, expected.astype(dtype), depth=64, scale=scale * expected.max())
    assert_close(mean, expected.mean(1).astype(dtype), depth=96, scale=scale * expected.max())

    path = tmp_path / "module.so"
    executable.export_library(str(path))
    for a, b in zip(both(tvm.runtime.load_module(str(path))), (softmax, mean), strict=True):
        assert a.tobytes() == b.tobytes()


SOURCE = """
#define ushort unsigned short
#endif
__forceinline__ __device__ float helper(float x) { return x; }
extern "C" __global__ void __launch_bounds__(32) first(float* __restrict__ a, int64_t n);
extern "C" __global__ void __launch_bounds__(32) first(float* __restrict__ a, int64_t n) {
  extern __shared__ uchar dynamic[];
  __shared__ alignas(16) half tile[64];
  if (n) { a[0] = helper(1); }
}
extern "C" __global__ void second(int x) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p cp.async.wait_all; }" : : "r"(x));
}
"""


def test_translation_takes_one_kernel_with_all_helpers():
    assert kernel_names(SOURCE) == ["first", "second"]
    first, second = translate(SOURCE, "first"), translate(SOURCE, "second")
    assert "helper(float x)" in first and "helper(float x)" in second
    assert "second(" not in first and "first(" not in second
    assert "half (&tile)[64] = *static_cast<half (*)[64]>(emulator_shared_static(0, sizeof(half[64]), 16));" in first
    assert "uchar* const dynamic = static_cast<uchar*>(emulator_shared_dynamic());" in first
    assert "first(*static_cast<float**>(arguments[0]), *static_cast<int64_t*>(arguments[1]));" in first
    assert "bool p = false; p = (x) != 0; if (p) { emulator_cp_async_commit(); emulator_cp_async_wait(0); }" in second
    with pytest.raises(ValueError, match="kernel third: not in the source"):
        translate(SOURCE, "third")
    with pytest.raises(NotImplementedError, match="wmma"):
        translate(SOURCE.replace("helper(1)", "nvcuda::wmma::x"), "first")


def steps_of_a_sampler() -> tvm.IRModule:
    """Ten kernels one after another on a shape that is known, which RewriteCUDAGraph captures."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([16, 16], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for _ in range(5):
                y = builder.emit(relax.op.nn.softmax(builder.emit(relax.op.matmul(y, y))))
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    return builder.get()


def test_graphs_are_captured_and_played():
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        executable = tvm.compile(steps_of_a_sampler(), target=TARGET)
    assert "vm.builtin.cuda_graph.run_or_capture" in executable.as_text()
    machine = relax.VirtualMachine(executable, DEVICE)
    for seed in range(3):
        cuda_emulator.clear_statistics()
        x = numbers(16, 16, seed=seed)
        y = x.astype(np.float64)
        for _ in range(5):
            y = np.exp(y @ y)
            y /= y.sum(1, keepdims=True)
        assert_close(machine["main"](on_device(x)).numpy(), y.astype(np.float32), depth=5 * 16, scale=np.abs(x @ x).max())
        launches = sum(figures["launches"] for figures in cuda_emulator.statistics().values())
        # The first time what is captured runs twice: once to get ready, and once as the graph.
        assert launches > 10 if seed == 0 else launches == 10
