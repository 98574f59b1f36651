"""The emulator's mma, ldmatrix and cp.async against numpy, and mistakes with each of them."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from tests import cuda_emulator
from tests.cuda_emulator.test_emulator import numbers, run
from tests.tolerance import assert_close

LANES = np.arange(32)
STORAGE = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32, "s8": np.int8}


def fragment(matrix: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Registers of the lanes that hold `matrix[row, column]`, [32, registers, values of a register], as unsigned integers."""
    values = np.ascontiguousarray(matrix[row, column])
    return values.reshape(32, -1).view(np.uint32)


def operands(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a [16, K] and b [K, 8] in registers, as the PTX manual lays out m16n8k: [32, ...] each."""
    k, pack = a.shape[1], 4 // a.itemsize
    lane = LANES[:, None, None]
    value, register = np.arange(pack)[None, None, :], np.arange(k // (2 * pack))[None, :, None]
    in_a = fragment(a, lane // 4 + 8 * (register % 2), lane % 4 * pack + value + 4 * pack * (register // 2))
    register = np.arange(k // (4 * pack))[None, :, None]
    in_b = fragment(b, lane % 4 * pack + value + 4 * pack * register, lane // 4 + 0 * value)
    return in_a, in_b


def mma(kind: str, k: int):
    pack = 4 // np.dtype(STORAGE[kind]).itemsize
    count_a, count_b = k // (2 * pack), k // (4 * pack)
    total = "s32" if kind == "s8" else "f32"
    dtype = "uint32" if kind == "s8" else "float32"
    instruction = f"mma.sync.aligned.m16n8k{k}.row.col.{total}.{kind}.{kind}.{total}"

    @T.prim_func(s_tir=True)
    def kernel(a_h: T.handle, b_h: T.handle, c_h: T.handle, d_h: T.handle):
        a = T.match_buffer(a_h, (32, count_a), "uint32")
        b = T.match_buffer(b_h, (32, count_b), "uint32")
        c = T.match_buffer(c_h, (32, 4), dtype)
        d = T.match_buffer(d_h, (32, 4), dtype)
        T.launch_thread("blockIdx.x", 1)
        lane = T.launch_thread("threadIdx.x", 32)
        ra = T.alloc_local((count_a,), "uint32")
        rb = T.alloc_local((count_b,), "uint32")
        rc = T.alloc_local((4,), dtype)
        for i in T.unroll(count_a):
            ra[i] = a[lane, i]
        for i in T.unroll(count_b):
            rb[i] = b[lane, i]
        for i in T.unroll(4):
            rc[i] = c[lane, i]
        T.ptx[instruction](
            *[rc[i] for i in range(4)],
            *[ra[i] for i in range(count_a)],
            *[rb[i] for i in range(count_b)],
            *[rc[i] for i in range(4)],
        )
        for i in T.unroll(4):
            d[lane, i] = rc[i]

    return kernel


@pytest.mark.parametrize(
    "kind, k", [("f16", 16), ("f16", 8), ("bf16", 16), ("bf16", 8), ("tf32", 8), ("tf32", 4), ("s8", 32), ("s8", 16)]
)
def test_mma(kind, k):
    if kind == "s8":
        random = np.random.default_rng(0)
        a, b = random.integers(-128, 128, (16, k)).astype(np.int8), random.integers(-128, 128, (k, 8)).astype(np.int8)
        c = random.integers(-1000, 1000, (16, 8)).astype(np.int32)
    else:
        a, b, c = numbers(16, k).astype(STORAGE[kind]), numbers(k, 8, seed=1).astype(STORAGE[kind]), numbers(16, 8, seed=2)
    in_a, in_b = operands(a, b)
    lane, i = LANES[:, None], np.arange(4)[None, :]
    row, column = lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2
    in_c = c[row, column].view(np.uint32 if kind == "s8" else np.float32)
    d = run(mma(kind, k), (32, 4), str(in_c.dtype), in_a, in_b, in_c).view(c.dtype)
    if kind == "tf32":  # the hardware reads 10 bits of the fraction
        a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
    wide = np.int64 if kind == "s8" else np.float64
    expected = (a.astype(wide) @ b.astype(wide) + c).astype(c.dtype)
    assert_close(d, expected[row, column], depth=1)


def test_rounding_to_tf32():
    @T.prim_func(s_tir=True)
    def kernel(a_h: T.handle, out_h: T.handle):
        a = T.match_buffer(a_h, (64,), "float32")
        out = T.match_buffer(out_h, (64,), "uint32")
        T.launch_thread("blockIdx.x", 1)
        thread = T.launch_thread("threadIdx.x", 64)
        rounded = T.alloc_local((1,), "uint32")
        T.ptx["cvt.rna.tf32.f32"](rounded[0], a[thread])
        out[thread] = rounded[0]

    a = numbers(64)
    got = run(kernel, (64,), "uint32", a).view(np.float32)
    assert not (got.view(np.uint32) & 0x1FFF).any()
    assert (np.abs(got - a) <= np.abs(a) * 2.0**-11).all()


def product(
    *, waits: int = 0, barrier: bool = True, written: str = "xor", read: str = "xor", missing_rows: int = 0, bytes_of: int = 16
):
    """out [16, 8] = a [16, 64] @ b [8, 64]^T in one warp: cp.async into shared memory, ldmatrix, mma.

    `written`, `read`: how the 16-byte chunks of a row are swizzled. The last `missing_rows` of a are filled by zeros.
    """

    def place(row, chunk, how):
        return chunk if how == "none" else chunk ^ (row % 8)

    @T.prim_func(s_tir=True)
    def kernel(a_h: T.handle, b_h: T.handle, out_h: T.handle):
        a = T.match_buffer(a_h, (16, 64), "float16", align=16)
        b = T.match_buffer(b_h, (8, 64), "float16", align=16)
        out = T.match_buffer(out_h, (16, 8), "float32")
        T.launch_thread("blockIdx.x", 1)
        lane = T.launch_thread("threadIdx.x", 32)
        tile_a = T.alloc_shared((16, 64), "float16", align=128)
        tile_b = T.alloc_shared((8, 64), "float16", align=128)
        ra = T.alloc_local((4,), "uint32")
        rb = T.alloc_local((2,), "uint32")
        sums = T.alloc_local((4,), "float32")
        T.evaluate(tile_a.ptr_to([15, 63]))  # or TVM makes the tiles as small as the addresses that it can follow
        T.evaluate(tile_b.ptr_to([7, 63]))
        for i in T.unroll(4):
            sums[i] = T.float32(0)
        for i in T.unroll(4):
            row: T.let = i * 4 + lane // 8
            T.ptx["cp.async.cg.shared.global"](
                tile_a.ptr_to([row, place(row, lane % 8, written) * 8]),
                a.ptr_to([row, lane % 8 * 8]),
                16,
                T.if_then_else(row < 16 - missing_rows, T.uint32(bytes_of), T.uint32(0)),
            )
        T.ptx.cp.async_.commit_group()
        for i in T.unroll(2):
            row: T.let = i * 4 + lane // 8
            T.ptx["cp.async.cg.shared.global"](
                tile_b.ptr_to([row, place(row, lane % 8, written) * 8]), b.ptr_to([row, lane % 8 * 8]), 16
            )
        T.ptx.cp.async_.commit_group()
        T.ptx.cp.async_.wait_group(waits)
        if barrier:
            T.cuda.cta_sync()
        for k in T.unroll(4):
            row_a: T.let = lane % 16
            T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](
                ra[0], ra[1], ra[2], ra[3], tile_a.ptr_to([row_a, place(row_a, k * 2 + lane // 16, read) * 8])
            )
            row_b: T.let = lane % 8
            T.ptx["ldmatrix.sync.aligned.m8n8.x2.shared.b16"](
                rb[0], rb[1], tile_b.ptr_to([row_b, place(row_b, k * 2 + lane // 8 % 2, read) * 8])
            )
            T.ptx["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"](
                *[sums[i] for i in range(4)],
                *[ra[i] for i in range(4)],
                *[rb[i] for i in range(2)],
                *[sums[i] for i in range(4)],
            )
        for i in T.unroll(4):
            out[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2] = sums[i]

    return kernel


A, B = numbers(16, 64).astype(np.float16), numbers(8, 64, seed=1).astype(np.float16)
PRODUCT = A.astype(np.float64) @ B.astype(np.float64).T


def conflicts() -> int:
    return cuda_emulator.statistics()["kernel_kernel"]["ldmatrix_conflicts"]


@pytest.mark.parametrize("missing_rows", [0, 5])
def test_copies_ldmatrix_and_mma_make_a_product(missing_rows):
    cuda_emulator.clear_statistics()
    expected = PRODUCT * (np.arange(16) < 16 - missing_rows)[:, None]
    got = cuda_emulator.same_bits(lambda: run(product(missing_rows=missing_rows), (16, 8), "float32", A, B))
    assert_close(got, expected.astype(np.float32), depth=4)
    figures = cuda_emulator.statistics()["kernel_kernel"]
    assert (figures["launches"], figures["mma"], figures["ldmatrix"], figures["cp_async"]) == (3, 12, 24, 3 * 192)
    assert figures["ldmatrix_conflicts"] == 0


def test_the_transpose_of_ldmatrix():
    @T.prim_func(s_tir=True)
    def kernel(a_h: T.handle, out_h: T.handle):
        a = T.match_buffer(a_h, (8, 8), "float16", align=16)
        out = T.match_buffer(out_h, (32, 2), "uint32")
        T.launch_thread("blockIdx.x", 1)
        lane = T.launch_thread("threadIdx.x", 32)
        tile = T.alloc_shared((8, 8), "float16", align=128)
        r = T.alloc_local((2,), "uint32")
        T.evaluate(tile.ptr_to([7, 7]))
        if lane < 8:
            T.ptx["cp.async.cg.shared.global"](tile.ptr_to([lane, 0]), a.ptr_to([lane, 0]), 16)
        T.ptx.cp.async_.commit_group()
        T.ptx.cp.async_.wait_group(0)
        T.cuda.cta_sync()
        T.ptx["ldmatrix.sync.aligned.m8n8.x1.shared.b16"](r[0], tile.ptr_to([lane % 8, 0]))
        T.ptx["ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16"](r[1], tile.ptr_to([lane % 8, 0]))
        out[lane, 0] = r[0]
        out[lane, 1] = r[1]

    a = numbers(8, 8).astype(np.float16)
    got = run(kernel, (32, 2), "uint32", a).view(np.float16).reshape(32, 2, 2)
    row, column = LANES[:, None] // 4, LANES[:, None] % 4 * 2 + np.arange(2)
    np.testing.assert_array_equal(got[:, 0], a[row, column])
    np.testing.assert_array_equal(got[:, 1], a.T[row, column])


def test_a_copy_that_is_not_waited_for_is_found():
    with pytest.raises(
        RuntimeError,
        match=r"cp\.async has not been waited for, at shared memory, byte \d+ of a shared array of 1024 bytes, number 1",
    ):
        run(product(waits=1), (16, 8), "float32", A, B)


def test_a_barrier_that_is_missing_behind_a_copy_is_found():
    for seed in range(4):
        with cuda_emulator.schedule(seed), pytest.raises(RuntimeError, match=r"missing barrier|unwritten|waited"):
            run(product(barrier=False), (16, 8), "float32", A, B)


def test_a_swizzle_that_is_missing_is_counted_and_a_wrong_one_gives_wrong_numbers():
    cuda_emulator.clear_statistics()
    got = run(product(written="none", read="none"), (16, 8), "float32", A, B)
    assert_close(got, PRODUCT.astype(np.float32), depth=4)
    assert conflicts() == 4 * (4 + 2) * 7  # of 8 rows in one bank, seven wait
    wrong = run(product(read="none"), (16, 8), "float32", A, B)
    assert np.abs(wrong - PRODUCT).max() > 1


def test_a_copy_is_checked_as_other_accesses_are():
    with pytest.raises(RuntimeError, match="unwritten memory, 16 bytes at global memory"):
        run(product(), (16, 8), "float32", tvm.runtime.empty((16, 64), "float16", tvm.cuda(0)), B)
    with pytest.raises(RuntimeError, match="source of 0 to 16 bytes, given 32"):
        run(product(bytes_of=32), (16, 8), "float32", A, B)


def test_an_instruction_that_is_not_known_says_so():
    code = (
        "__forceinline__ __device__ int test_unknown(int x) {"
        ' int y; asm volatile("vadd4.u32.u32.u32 %0, %1, %1, %1;" : "=r"(y) : "r"(x)); return y; }'
    )

    @T.prim_func(s_tir=True)
    def kernel(out_h: T.handle):
        out = T.match_buffer(out_h, (1,), "int32")
        T.launch_thread("blockIdx.x", 1)
        T.launch_thread("threadIdx.x", 1)
        out[0] = T.cuda.func_call("test_unknown", 1, source_code=code, return_type="int32")

    with pytest.raises(NotImplementedError, match=r"does not know vadd4\.u32\.u32\.u32"):
        run(kernel, (1,), "int32")
