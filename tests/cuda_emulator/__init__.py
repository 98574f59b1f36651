"""An emulated CUDA device, for tests on machines without one.

    from tests import cuda_emulator
    cuda_emulator.install()
    device = tvm.cuda(0)  # everything that targets CUDA now runs in this process

It takes the CUDA source out of a compiled module, rewrites it for the host (translate.py), compiles it by g++ and runs it,
a fiber to each thread (runtime/machine.cc). A launch that does something wrong ends in a RuntimeError that names kernel, block,
thread, place and line; the translated source stays beside the compiled kernel.

Found exactly: reads and writes out of the bounds of an allocation or a shared array, of freed memory, misaligned; reads of
memory that nothing has written; a cp.async that is not waited for; accesses of two threads without a barrier between them, in
shared and global memory; barriers that not all threads of a block reach, collectives that not all lanes of their mask reach;
launches that a GPU refuses; division by zero; an index beyond a local array; host code that touches memory of the device, which
ends the process as a GPU does. Waiting for ever is found by a limit of steps.
Found by numbers: registers that nothing was written to hold garbage; what depends on the order of threads differs between two
schedules (`same_bits`); bank conflicts of ldmatrix are counted (`statistics`).
Not emulated: wgmma, TMA, mbarrier, wmma, clusters, cooperative launches, textures, time. Approximate functions are exact ones,
and sums of mma are rounded once, so last bits differ from a GPU's. Threads of different blocks are never ordered, also not by
__threadfence and flags: what communicates so is reported.
Memory that a virtual machine keeps and hands out again counts as written.

CUDA_EMULATOR_CACHE: where compiled kernels are kept. CUDA_EMULATOR_SEED: the schedule, 1 unless given. A schedule follows from
the seed and the kernel's name alone. CUDA_EMULATOR_MEMORY: bytes of the device, 2 GiB unless given.
"""

import ctypes
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import tvm
import tvm_ffi

from .build import kernel_library, runtime_library

__all__ = ["clear_statistics", "install", "missing", "same_bits", "schedule", "statistics", "strict"]

_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_seed = int(os.environ.get("CUDA_EMULATOR_SEED", "1"))
_strict = {"copies": False, "plain_reads_of_atomics": True, "steps": 0}


def missing() -> str | None:
    """Why the emulator cannot run on this machine, or None."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
        return f"the CUDA emulator runs on x86-64 Linux only, given {platform.machine()} {platform.system()}"
    if shutil.which("g++") is None:
        return "the CUDA emulator needs g++"
    return None


def install() -> None:
    """Puts the emulated device in the place of `tvm.cuda(0)`, for this process and for good."""
    global _library
    with _lock:
        if _library is not None:
            return
        if reason := missing():
            raise RuntimeError(reason)
        library = ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)
        tvm_ffi.register_global_func("cuda_emulator.compile", kernel_library, override=True)
        tvm_ffi.register_error("NotImplementedError", NotImplementedError)
        library.cuda_emulator_register()
        _call("set_seed", _seed)
        _library = library


def _call(name: str, *args):
    return tvm.get_global_func(f"cuda_emulator.{name}")(*args)


@contextmanager
def schedule(seed: int) -> Iterator[None]:
    """Launches inside take turns in another order."""
    global _seed
    before, _seed = _seed, seed
    _call("set_seed", seed)
    try:
        yield
    finally:
        _seed = before
        _call("set_seed", before)


def same_bits(run: Callable[[], object], seeds: tuple[int, ...] = (1, 2, 7)) -> object:
    """The result of `run()`, an array, tensor or sequence of them; AssertionError unless all schedules give the same bits."""
    first = None
    for seed in seeds:
        with schedule(seed):
            result = run()
        bits = _bits(result)
        if first is None:
            first, kept = bits, result
            continue
        assert len(bits) == len(first), f"{len(bits)} results under schedule {seed}, {len(first)} under {seeds[0]}"
        for number, (a, b) in enumerate(zip(first, bits, strict=True)):
            assert a[0] == b[0], f"result {number}: shape and dtype {b[0]} under schedule {seed}, {a[0]} under {seeds[0]}"
            assert a[1] == b[1], f"result {number}: schedules {seeds[0]} and {seed} give different bits"
    return kept


def _bits(result) -> list[tuple]:
    if isinstance(result, tvm.runtime.Tensor):
        result = result.numpy()
    if isinstance(result, np.ndarray):
        return [((result.shape, str(result.dtype)), result.tobytes())]
    return [pair for part in result for pair in _bits(part)]


@contextmanager
def strict(
    *, copies: bool | None = None, plain_reads_of_atomics: bool | None = None, steps: int | None = None
) -> Iterator[None]:
    """Changes what is refused.

    `copies`: a copy to the host of memory that nothing has written (not refused unless asked for). `plain_reads_of_atomics`: a
    plain read of what other threads change atomically (refused unless False; volatile and atomic reads are never). `steps`: how
    long a launch may run.
    """
    global _strict
    before = _strict
    given = {"copies": copies, "plain_reads_of_atomics": plain_reads_of_atomics, "steps": steps}
    _strict = {**before, **{name: value for name, value in given.items() if value is not None}}
    _call("set_strict", *_strict.values())
    try:
        yield
    finally:
        _strict = before
        _call("set_strict", before["copies"], before["plain_reads_of_atomics"], before["steps"] or 2_000_000_000)


def statistics() -> dict[str, dict[str, int]]:
    """By kernel name since `clear_statistics`: launches, blocks, bytes of global and shared memory read and written by plain
    and asynchronous accesses, mma and ldmatrix of warps, rows of ldmatrix that found their bank taken, copies, barriers,
    atomics."""
    return {
        str(name): {str(key): int(value) for key, value in figures.items()} for name, figures in _call("statistics").items()
    }


def clear_statistics() -> None:
    """Counts anew."""
    _call("clear_statistics")
