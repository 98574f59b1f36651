"""The machine's peak: a loop of nothing but the multiply-add that the matrix kernels use, in registers.

    acc = acc * w + x   fp32: one fused multiply-add a vector (a multiplication and an addition where a CPU has no such
                        instruction)
    acc = acc + x . w   bf16: one dot instruction a vector, where the instruction set has it
                        int8: what one step of its kernels takes, where they gain by integer products

Without the dot instruction the bf16 kernels widen to float32, so that the peak of bf16 is then that of fp32 by
definition; so is that of int8 where its kernels would not gain. Operands never leave their registers: what a kernel lacks to
this is spent on loads, stores and waiting.
"""

import functools
import time
from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..script import inline
from . import threads as pool
from .int8_linear import Form
from .isa import Isa, host_target, kernel_name
from .register_tile import Accumulators, RegisterTile

DTYPES = ("float32", "bfloat16", "int8")


def naive(start: np.ndarray, steps: int, pair: bool) -> np.ndarray:
    """Oracle, float64: `steps` times acc = acc / 2 + 1/2, or with `pair` acc = acc + 1/2 * 1/2 + 1/2 * 1/2."""
    acc = start.astype(np.float64)
    for _ in range(steps):
        acc = acc + 0.5 if pair else acc * 0.5 + 0.5
    return acc


def naive_integers(start: np.ndarray, steps: int, per: int) -> np.ndarray:
    """Oracle, int32: `steps` times acc = acc + the sum of the `per` signed integers that an int32 of acc is made of."""
    acc = start.copy()
    for _ in range(steps):
        acc += acc.view(np.int8 if per == 4 else np.int16).reshape(*acc.shape, per).sum(-1, dtype=np.int32)
    return acc


def accumulators(isa: Isa) -> int:
    """Independent sums: more than latency x issue width of any CPU known, within the registers."""
    return 15 if isa.registers == 32 else 12


def flops_per_step(isa: Isa, dtype: str) -> int:
    """Operations of one step of `peak_loop` on one thread."""
    if uses_integers(isa, dtype):
        return accumulators(isa) * isa.lanes * 2 * Form.of(isa).per
    return accumulators(isa) * isa.lanes * (4 if uses_dot(isa, dtype) else 2)


def uses_dot(isa: Isa, dtype: str) -> bool:
    """Whether kernels of `dtype` have products of their own on `isa`: of pairs of bfloat16, or of integers."""
    return (dtype == "bfloat16" and isa.bf16_dot) or uses_integers(isa, dtype)


def uses_integers(isa: Isa, dtype: str) -> bool:
    """Whether kernels of `dtype` multiply integers on `isa`."""
    return dtype == "int8" and bool(isa.integer)


@cache
def peak_loop(isa: Isa, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """PrimFunc (acc float32 [threads, A, lanes], w, steps int64): `steps` multiply-adds of each accumulator.

    w: float32 [lanes] that is both factor and summand, or int32 [lanes] of bfloat16 pairs with the dot instruction. Of integers
    acc is int32, and both accumulator and factor.
    """
    if uses_integers(isa, dtype):
        return _integer_loop(isa)
    dtype = "float32" if dtype == "int8" else dtype
    count, lanes, dot = accumulators(isa), isa.lanes, uses_dot(isa, dtype)
    micro = RegisterTile(isa, 2, lanes, dtype)
    vector = f"float32x{lanes}"

    @inline
    def step_f32(first, rows, part, w):
        # the accumulator is a factor: a product of two constants would be taken out of the loop
        for a in T.unroll(rows):
            for lane in T.vectorized(lanes):
                part[a, lane] = part[a, lane] * w[lane] + w[lane]

    @inline
    def step_dot(first, rows, part, w):
        for a in T.unroll(rows):
            part[a, T.Ramp(0, 1, lanes)] = T.call_pure_extern(
                vector, "dot_bf16_pair", part[a, T.Ramp(0, 1, lanes)], w[T.Ramp(0, 1, lanes)], w[0]
            )

    def step(acc, w):
        for part in acc.parts:
            (step_dot if dot else step_f32)(*part, w)

    @script.prim_func(s_tir=True)
    def kernel(acc_: T.handle, w: T.Buffer((lanes,), "int32" if dot else "float32"), steps: T.int64):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("peak", dtype, isa)})
        threads = T.int64()
        out = T.match_buffer(acc_, (threads, count, lanes), "float32")
        if dot:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
        for thread in T.parallel(threads):
            acc = micro.accumulators(count, lanes)
            acc.load(lambda a, lane: out[thread, a, lane])
            for _ in range(steps):
                step(acc, w)
            acc.store(lambda value, a, lane: T.buffer_store(out, value, [thread, a, lane]))

    return kernel


def _integer_loop(isa: Isa) -> tvm.tirx.PrimFunc:
    form, lanes = Form.of(isa), isa.lanes

    @inline
    def step_part(first, rows, part, w):
        # the accumulator is a factor: products that do not change would be taken out of the loop where they are added apart
        for a in T.unroll(rows):
            part[a, T.Ramp(0, 1, lanes)] = T.call_pure_extern(
                f"int32x{lanes}", form.step, part[a, T.Ramp(0, 1, lanes)], part[a, T.Ramp(0, 1, lanes)], w[0]
            )

    @inline
    def load_part(first, rows, part, out, thread):
        for a in T.unroll(rows):
            part[a, T.Ramp(0, 1, lanes)] = out[thread, first + a, T.Ramp(0, 1, lanes)]

    @inline
    def store_part(first, rows, part, out, thread):
        for a in T.unroll(rows):
            out[thread, first + a, T.Ramp(0, 1, lanes)] = part[a, T.Ramp(0, 1, lanes)]

    @script.prim_func(s_tir=True)
    def kernel(acc_: T.handle, w: T.Buffer((lanes,), "int32"), steps: T.int64):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"peak_{form.name}__{isa.name}"})
        threads = T.int64()
        out = T.match_buffer(acc_, (threads, accumulators(isa), lanes), "int32")
        T.attr(T.int32(0), "pragma_import_llvm", form.llvm_ir)
        for thread in T.parallel(threads):
            sums = T.meta_var(Accumulators(accumulators(isa), lanes, lanes, "int32"))
            sums.each(lambda first, rows, part: load_part(first, rows, part, out, thread))
            for _ in range(steps):
                sums.each(lambda first, rows, part: step_part(first, rows, part, w))
            sums.each(lambda first, rows, part: store_part(first, rows, part, out, thread))

    return kernel


@functools.cache
def _compiled(isa: Isa, dtype: str):
    return tvm.compile(tvm.IRModule({"main": peak_loop(isa, dtype)}), target=host_target())["main"]


def operand(isa: Isa, dtype: str) -> np.ndarray:
    """The `w` of `peak_loop`: halves; of integers, ones."""
    if uses_integers(isa, dtype):
        return np.full(isa.lanes, 0x01010101 if Form.of(isa).per == 4 else 0x00010001, "int32")
    if uses_dot(isa, dtype):
        return np.full(isa.lanes, 0x3F003F00, "int32")  # two bfloat16 0.5
    return np.full(isa.lanes, 0.5, "float32")


def measure_peak(dtype: str = "float32", threads: int | None = None, isa: Isa | None = None, seconds: float = 0.01) -> float:
    """GFLOP/s of the multiply-add of `dtype`'s kernels on `threads` threads (default: TVM's pool), measured once.

    `seconds`: about how long to measure. On a machine with other work repeat it and take the median.
    Raises ValueError for a dtype that is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, given {dtype!r}")
    isa = isa or Isa.of(host_target())
    threads = threads or pool.threads()
    if not uses_dot(isa, dtype):
        dtype = "float32"  # kernels widen bfloat16, and where no integers are gained by, multiply float32
    run = _compiled(isa, dtype)
    acc = tvm.runtime.tensor(
        np.zeros((threads, accumulators(isa), isa.lanes), "int32" if uses_integers(isa, dtype) else "float32")
    )
    w = tvm.runtime.tensor(operand(isa, dtype))

    def timed(steps: int) -> float:
        start = time.perf_counter()
        run(acc, w, steps)
        return time.perf_counter() - start

    timed(1000)  # compiles on first use and wakes the pool
    steps = 100_000
    brief = timed(steps)
    steps = max(1000, int(steps * seconds / max(brief, 1e-6)))
    return threads * steps * flops_per_step(isa, dtype) / timed(steps) / 1e9
