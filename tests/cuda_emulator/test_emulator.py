"""The emulator finds what is wrong with a kernel, and passes the same kernel once it is right."""

import contextlib

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm.script import tirx as T

from tests import cuda_emulator
from tests.tolerance import assert_close

if reason := cuda_emulator.missing():
    pytest.skip(reason, allow_module_level=True)
cuda_emulator.install()

DEVICE = tvm.cuda(0)
TARGET = tvm.target.Target({"kind": "cuda", "arch": "sm_90", "host": {"kind": "llvm"}})
POSTPROCESS = "tvm_callback_cuda_postproc"


@contextlib.contextmanager
def source_changed(old: str, new: str, nth: int = 0):
    """What is compiled inside has the `nth` `old` of its kernel's CUDA source replaced: for mistakes that TIR cannot make."""

    def change(code, target):
        begin = code.index("__launch_bounds__", code.index("__launch_bounds__") + 1)  # kernels are declared, then defined
        parts = code[begin:].split(old)
        assert len(parts) > nth + 1, code
        return code[:begin] + old.join(parts[: nth + 1]) + new + old.join(parts[nth + 1 :])

    tvm_ffi.register_global_func(POSTPROCESS, change, override=True)
    try:
        yield
    finally:
        tvm_ffi.remove_global_func(POSTPROCESS)


def compiled(kernel) -> tvm.runtime.Executable:
    return tvm.compile(tvm.IRModule({"main": kernel}), target=TARGET)


def on_device(array: np.ndarray) -> tvm.runtime.Tensor:
    return tvm.runtime.tensor(array, DEVICE)


def run(kernel, out_shape, out_dtype, *arrays) -> np.ndarray:
    """What `kernel(*arrays, out)` writes to `out`; arrays of numpy are copied to the device."""
    executable = kernel if isinstance(kernel, tvm.runtime.Executable) else compiled(kernel)
    out = tvm.runtime.empty(out_shape, out_dtype, DEVICE)
    executable["main"](*[on_device(a) if isinstance(a, np.ndarray) else a for a in arrays], out)
    return out.numpy()


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- Bounds, unwritten memory, alignment


def shifted(offset: int, rows: int | None = None):
    @T.prim_func(s_tir=True)
    def kernel(a_h: T.handle, out_h: T.handle):
        n = T.int64()
        a = T.match_buffer(a_h, (n,), "float32")
        out = T.match_buffer(out_h, (n,), "float32")
        block = T.launch_thread("blockIdx.x", (n + 63) // 64)
        thread = T.launch_thread("threadIdx.x", 64)
        i: T.let = block * 64 + thread
        if i < (n if rows is None else rows):
            out[i] = a[i + offset]

    return kernel


def test_a_read_out_of_bounds_is_found():
    a = numbers(100)
    np.testing.assert_array_equal(run(shifted(0), (100,), "float32", a), a)
    with pytest.raises(
        RuntimeError, match=r"kernel kernel_kernel, block \(1, 0, 0\), thread \(35, 0, 0\): out-of-bounds read.*0 byte"
    ):
        run(shifted(1), (100,), "float32", a)
    with pytest.raises(RuntimeError, match=r"4 bytes before the beginning of an allocation of 400 bytes"):
        run(shifted(-1), (100,), "float32", a)


def test_a_write_out_of_bounds_is_found_and_names_its_line():
    with pytest.raises(RuntimeError, match=r"(?s)out-of-bounds (read|write) of 4 bytes at global memory.*out_ptr\["):
        run(shifted(0, 110), (100,), "float32", numbers(100))


def test_the_emulator_goes_on_after_an_error():
    with pytest.raises(RuntimeError, match="out-of-bounds"):
        run(shifted(1), (100,), "float32", numbers(100))
    np.testing.assert_array_equal(run(shifted(0), (100,), "float32", numbers(100)), numbers(100))


def test_a_read_of_unwritten_memory_is_found():
    never = tvm.runtime.empty((100,), "float32", DEVICE)
    assert np.isnan(never.numpy()).all()
    with pytest.raises(RuntimeError, match="read of unwritten memory, 4 bytes at global memory, at byte"):
        run(shifted(0), (100,), "float32", never)
    with cuda_emulator.strict(copies=True), pytest.raises(RuntimeError, match="never written"):
        never.numpy()


@T.prim_func(s_tir=True)
def vectors(a_h: T.handle, out_h: T.handle):
    a = T.match_buffer(a_h, (260,), "float32")
    out = T.match_buffer(out_h, (256,), "float32")
    T.launch_thread("blockIdx.x", 1)
    thread = T.launch_thread("threadIdx.x", 64)
    for lane in T.vectorized(4):
        out[thread * 4 + lane] = a[thread * 4 + lane + 4]


def test_a_misaligned_vector_is_found():
    a = numbers(260)
    np.testing.assert_array_equal(run(vectors, (256,), "float32", a), a[4:])
    with source_changed("*(float4*)(a_ptr + (", "*(float4*)(a_ptr - 1 + ("):
        wrong = compiled(vectors)
    with pytest.raises(RuntimeError, match="misaligned read: expected a multiple of 16 bytes, given 12 more"):
        run(wrong, (256,), "float32", a)


@T.prim_func(s_tir=True)
def unguarded(a_h: T.handle, out_h: T.handle):
    n = T.int64()
    a = T.match_buffer(a_h, (n,), "float32")
    out = T.match_buffer(out_h, (n,), "float32")
    block = T.launch_thread("blockIdx.x", n // 64)
    thread = T.launch_thread("threadIdx.x", 64)
    out[block * 64 + thread] = a[block * 64 + thread]


def test_a_grid_of_no_blocks_runs_one_block():
    # As TVM's runtime does: only a kernel that asks for the number of its row may be launched on no rows.
    run(unguarded, (128,), "float32", numbers(128))
    run(shifted(0), (0,), "float32", numbers(0))
    with pytest.raises(RuntimeError, match=r"block \(0, 0, 0\).*out-of-bounds"):
        run(unguarded, (0,), "float32", numbers(0))


@pytest.mark.parametrize("threads, dimension", [(2048, "x"), (128, "z")])
def test_a_launch_that_a_gpu_refuses_is_found(threads, dimension):
    @T.prim_func(s_tir=True)
    def kernel(out_h: T.handle):
        out = T.match_buffer(out_h, (threads,), "float32")
        T.launch_thread("blockIdx.x", 1)
        thread = T.launch_thread(f"threadIdx.{dimension}", threads)
        out[thread] = T.float32(0)

    with pytest.raises(RuntimeError, match=f"CUDA_ERROR_INVALID_VALUE.*blockDim.{dimension}: expected 1 to .* given {threads}"):
        run(kernel, (threads,), "float32")


# ---- Barriers and races


@T.prim_func(s_tir=True)
def reversed_by_block(a_h: T.handle, out_h: T.handle):
    a = T.match_buffer(a_h, (256,), "float32")
    out = T.match_buffer(out_h, (256,), "float32")
    block = T.launch_thread("blockIdx.x", 2)
    thread = T.launch_thread("threadIdx.x", 128)
    tile = T.alloc_shared((128,), "float32")
    tile[thread] = a[block * 128 + thread]
    out[block * 128 + thread] = tile[127 - thread]


def test_a_missing_barrier_is_found():
    a = numbers(256)
    expected = a.reshape(2, 128)[:, ::-1].reshape(-1)
    np.testing.assert_array_equal(cuda_emulator.same_bits(lambda: run(reversed_by_block, (256,), "float32", a)), expected)
    with source_changed("__syncthreads();", ""):
        wrong = compiled(reversed_by_block)
    for seed in range(4):
        with (
            cuda_emulator.schedule(seed),
            pytest.raises(RuntimeError, match=r"(missing barrier|unwritten).*shared array of 512"),
        ):
            run(wrong, (256,), "float32", a)


@T.prim_func(s_tir=True)
def overwritten(a_h: T.handle, out_h: T.handle):
    a = T.match_buffer(a_h, (64,), "float32")
    out = T.match_buffer(out_h, (64,), "float32")
    T.launch_thread("blockIdx.x", 1)
    thread = T.launch_thread("threadIdx.x", 64)
    tile = T.alloc_shared((64,), "float32")
    tile[thread] = a[thread]
    other = T.alloc_local((1,), "float32")
    other[0] = tile[63 - thread]
    tile[thread] = other[0] + T.float32(1)
    out[thread] = tile[63 - thread]


def test_a_write_before_all_have_read_is_found():
    a = numbers(64)
    assert_close(run(overwritten, (64,), "float32", a), a + 1)
    with source_changed("__syncthreads();", "", nth=1):  # the one between the reads and the writes
        wrong = compiled(overwritten)
    for seed in range(4):
        with cuda_emulator.schedule(seed), pytest.raises(RuntimeError, match=r"missing barrier: a (write|read)"):
            run(wrong, (64,), "float32", a)


@T.prim_func(s_tir=True)
def neighbours_of_a_warp(a_h: T.handle, out_h: T.handle):
    a = T.match_buffer(a_h, (64,), "float32")
    out = T.match_buffer(out_h, (64,), "float32")
    T.launch_thread("blockIdx.x", 1)
    thread = T.launch_thread("threadIdx.x", 64)
    tile = T.alloc_shared((64,), "float32")
    tile[thread] = a[thread]
    out[thread] = tile[thread ^ 1]


def test_a_warp_is_ordered_by_syncwarp_and_by_nothing_less():
    a = numbers(64)
    expected = a.reshape(32, 2)[:, ::-1].reshape(-1)
    with source_changed("__syncthreads();", "__syncwarp();"):
        np.testing.assert_array_equal(run(compiled(neighbours_of_a_warp), (64,), "float32", a), expected)
    with source_changed("__syncthreads();", "__ballot_sync(0xffffffffu, 1);"):
        wrong = compiled(neighbours_of_a_warp)
    with pytest.raises(RuntimeError, match="missing barrier"):
        run(wrong, (64,), "float32", a)
    with source_changed("__syncthreads();", "__syncwarp();"):
        across = compiled(reversed_by_block)
    with pytest.raises(RuntimeError, match=r"missing barrier|unwritten"):
        run(across, (256,), "float32", numbers(256))


def test_a_divergent_barrier_is_found():
    for change, words in (
        ("__syncthreads();\n if ((int)threadIdx.x < 64) __syncthreads();", "divergent barrier"),
        ("if ((int)threadIdx.x < 64) { __syncthreads(); } else {\n __syncthreads(); }", "divergent barrier.*another one"),
    ):
        with source_changed("__syncthreads();", change):
            wrong = compiled(reversed_by_block)
        with pytest.raises(RuntimeError, match=words):
            run(wrong, (256,), "float32", numbers(256))


@T.prim_func(s_tir=True)
def summed_by_warp(a_h: T.handle, out_h: T.handle):
    a = T.match_buffer(a_h, (64,), "float32")
    out = T.match_buffer(out_h, (64,), "float32")
    T.launch_thread("blockIdx.x", 1)
    thread = T.launch_thread("threadIdx.x", 64)
    value = T.alloc_local((1,), "float32")
    value[0] = a[thread]
    for step in T.unroll(5):
        value[0] = value[0] + T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), value[0], T.shift_left(1, step), 32, 32)
    out[thread] = value[0]


def test_a_partial_warp_collective_is_found():
    a = numbers(64)
    assert_close(run(summed_by_warp, (64,), "float32", a), np.repeat(a.reshape(2, 32).sum(1), 32), depth=32)
    with source_changed("value_ptr[0] = (value", "if ((int)threadIdx.x % 32 < 31) value_ptr[0] = (value", nth=2):
        wrong = compiled(summed_by_warp)
    with pytest.raises(RuntimeError, match=r"partial-warp collective: a shuffle of the lanes 0xffffffff"):
        run(wrong, (64,), "float32", a)


@T.prim_func(s_tir=True)
def two_blocks_write_one_cell(out_h: T.handle):
    out = T.match_buffer(out_h, (1,), "int32")
    block = T.launch_thread("blockIdx.x", 2)
    T.launch_thread("threadIdx.x", 1)
    out[0] = T.Cast("int32", block)


def test_blocks_are_never_ordered():
    with pytest.raises(RuntimeError, match=r"missing barrier: a write to what is written by .*another block"):
        run(two_blocks_write_one_cell, (1,), "int32")


@T.prim_func(s_tir=True)
def halves_of_a_word(a_h: T.handle, out_h: T.handle):
    a = T.match_buffer(a_h, (64,), "float16")
    out = T.match_buffer(out_h, (64,), "float16")
    T.launch_thread("blockIdx.x", 1)
    thread = T.launch_thread("threadIdx.x", 64)
    out[thread] = a[thread]


def test_neighbours_that_share_a_word_do_not_race():
    a = numbers(64).astype(np.float16)
    np.testing.assert_array_equal(run(halves_of_a_word, (64,), "float16", a), a)


# ---- Atomics


@T.prim_func(s_tir=True)
def sum_by_atomics(a_h: T.handle, out_h: T.handle):
    a = T.match_buffer(a_h, (512,), "float32")
    out = T.match_buffer(out_h, (1,), "float32")
    block = T.launch_thread("blockIdx.x", 4)
    thread = T.launch_thread("threadIdx.x", 128)
    T.evaluate(T.cuda.atomic_add(out.ptr_to([0]), a[block * 128 + thread]))


@T.prim_func(s_tir=True)
def count_by_atomics(a_h: T.handle, out_h: T.handle):
    a = T.match_buffer(a_h, (512,), "int32")
    out = T.match_buffer(out_h, (1,), "int32")
    block = T.launch_thread("blockIdx.x", 4)
    thread = T.launch_thread("threadIdx.x", 128)
    T.evaluate(T.cuda.atomic_add(out.ptr_to([0]), a[block * 128 + thread]))


def test_a_sum_of_floats_by_atomics_differs_between_schedules():
    def total(kernel, array):
        out = on_device(np.zeros(1, array.dtype))
        kernel["main"](on_device(array), out)
        return out

    floats, integers = compiled(sum_by_atomics), compiled(count_by_atomics)
    with pytest.raises(AssertionError, match="different bits"):
        cuda_emulator.same_bits(lambda: total(floats, numbers(512)))
    counts = np.arange(512, dtype=np.int32)
    assert cuda_emulator.same_bits(lambda: total(integers, counts)).numpy()[0] == counts.sum()


CLAIM = """
__forceinline__ __device__ int test_claim(void* keys, int key) {
  for (int slot = key * 7 & 63;; slot = (slot + 1) & 63) {
    int seen = READ;
    if (seen == key) return slot;
    if (seen == -1) {
      int old = atomicCAS((int*)keys + slot, -1, key);
      if (old == -1 || old == key) return slot;
    }
  }
}
"""


def claim(read: str):
    code = CLAIM.replace("READ", read)

    @T.prim_func(s_tir=True)
    def kernel(keys_h: T.handle, table_h: T.handle, out_h: T.handle):
        keys = T.match_buffer(keys_h, (60,), "int32")
        table = T.match_buffer(table_h, (64,), "int32")
        out = T.match_buffer(out_h, (60,), "int32")
        block = T.launch_thread("blockIdx.x", 4)
        thread = T.launch_thread("threadIdx.x", 15)
        i: T.let = block * 15 + thread
        out[i] = T.cuda.func_call("test_claim", table.ptr_to([0]), keys[i], source_code=code, return_type="int32")

    return kernel


def test_a_hash_table_reads_its_keys_by_volatile_loads():
    keys = np.random.default_rng(1).permutation(1000)[:30].repeat(2).astype(np.int32)
    for seed in range(5):
        with cuda_emulator.schedule(seed):
            table = on_device(np.full(64, -1, np.int32))
            slots = run(claim("*((volatile int*)keys + slot)"), (60,), "int32", keys, table)
            np.testing.assert_array_equal(table.numpy()[slots], keys)
            assert len(set(slots.tolist())) == 30
    plain = claim("((int*)keys)[slot]")
    with pytest.raises(RuntimeError, match=r"missing barrier.*atomic"):
        run(plain, (60,), "int32", keys, on_device(np.full(64, -1, np.int32)))
    with cuda_emulator.strict(plain_reads_of_atomics=False):
        run(plain, (60,), "int32", keys, on_device(np.full(64, -1, np.int32)))


def test_waiting_for_ever_is_found():
    code = "__forceinline__ __device__ int test_wait(void* flag) { while (*(volatile int*)flag == 0) {} return 1; }"

    @T.prim_func(s_tir=True)
    def kernel(flag_h: T.handle, out_h: T.handle):
        flag = T.match_buffer(flag_h, (1,), "int32")
        out = T.match_buffer(out_h, (1,), "int32")
        T.launch_thread("blockIdx.x", 1)
        T.launch_thread("threadIdx.x", 1)
        out[0] = T.cuda.func_call("test_wait", flag.ptr_to([0]), source_code=code, return_type="int32")

    assert run(kernel, (1,), "int32", np.ones(1, np.int32))[0] == 1
    with cuda_emulator.strict(steps=100_000), pytest.raises(RuntimeError, match="ran for 100000 steps"):
        run(kernel, (1,), "int32", np.zeros(1, np.int32))


# ---- Registers


def test_a_register_that_nothing_wrote_to_is_garbage():
    @T.prim_func(s_tir=True)
    def kernel(a_h: T.handle, out_h: T.handle):
        a = T.match_buffer(a_h, (64,), "float32")
        out = T.match_buffer(out_h, (64,), "float32")
        T.launch_thread("blockIdx.x", 1)
        thread = T.launch_thread("threadIdx.x", 64)
        total = T.alloc_local((1,), "float32")
        total[0] = T.float32(0)
        total[0] = total[0] + a[thread]
        out[thread] = total[0]

    a = numbers(64)
    np.testing.assert_array_equal(run(kernel, (64,), "float32", a), a)
    with source_changed("total_ptr[0] = 0x0p+0f/*0.000000e+00*/;", ""):
        wrong = compiled(kernel)
    assert np.abs(run(wrong, (64,), "float32", a) - a).min() > 1e30


def test_an_index_beyond_a_local_array_and_a_division_by_zero_are_found():
    @T.prim_func(s_tir=True)
    def kernel(a_h: T.handle, out_h: T.handle):
        a = T.match_buffer(a_h, (64,), "int32")
        out = T.match_buffer(out_h, (64,), "int32")
        T.launch_thread("blockIdx.x", 1)
        thread = T.launch_thread("threadIdx.x", 64)
        local = T.alloc_local((4,), "int32")
        for i in T.serial(4):
            local[i] = a[thread] + i
        out[thread] = local[a[thread]] // T.max(a[thread], 0)

    np.testing.assert_array_equal(run(kernel, (64,), "int32", np.full(64, 3, np.int32)), np.full(64, 2))
    with pytest.raises(RuntimeError, match="index 4 is out of the bounds of a local array"):
        run(kernel, (64,), "int32", np.full(64, 4, np.int32))
    with pytest.raises(RuntimeError, match="divided by zero"):
        run(kernel, (64,), "int32", np.full(64, 0, np.int32))
