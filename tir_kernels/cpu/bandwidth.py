"""The memory's bandwidth: STREAM's triad on arrays that no cache holds (McCalpin, IEEE TCCA Newsletter 1995).

    out = a + 3 b

As there, the bytes that count are those of the three arrays, once each. A line of `out` that is read before it is written does
not count, here or for the kernels that are held against it.
"""

import functools
from pathlib import Path

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from .isa import host_target

LINE = 16  # float32 of one cache line
CHUNK = 256  # lines that a thread takes at a time
LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@functools.cache
def triad() -> tvm.tirx.PrimFunc:
    """PrimFunc (a, b, out), float32 [chunks, CHUNK, LINE] each: out = a + 3 b."""

    @script.prim_func(s_tir=True)
    def kernel(a_: T.handle, b_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "triad"})
        chunks = T.int64()
        a = match_buffer(a_, (chunks, CHUNK, LINE), "float32")
        b = match_buffer(b_, (chunks, CHUNK, LINE), "float32")
        out = match_buffer(out_, (chunks, CHUNK, LINE), "float32")
        for chunk in T.parallel(chunks):
            for line in range(CHUNK):
                for lane in T.vectorized(LINE):
                    out[chunk, line, lane] = a[chunk, line, lane] + T.float32(3) * b[chunk, line, lane]

    return kernel


def array_bytes() -> int:
    """Of each array: at least 64 MiB, and twice the last cache where that is known."""
    try:
        cache = int(LAST_CACHE.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        cache = 0
    return max(64 << 20, 2 * cache)


class Triad:
    """A call moves `moved` bytes, on all threads, and returns `out`, all of it `RESULT`."""

    RESULT = 7.0

    def __init__(self):
        chunks = array_bytes() // (4 * CHUNK * LINE)
        shape = (chunks, CHUNK, LINE)
        given = (np.full(shape, value, "float32") for value in (1, 2, 0))
        self.arrays = [tvm.runtime.tensor(array) for array in given]
        self.moved = 3 * 4 * int(np.prod(shape))
        self._run = tvm.compile(tvm.IRModule({"main": triad()}), target=host_target())["main"]

    def __call__(self) -> tvm.runtime.Tensor:
        self._run(*self.arrays)
        return self.arrays[2]
