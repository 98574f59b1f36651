"""A checksum over the bits of an array: chunks in parallel, each as lanes that are mixed side by side."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..checksum import fold, mix
from ..script import inline
from ..spec.checksum import CHUNK, CHUNKS, LANES, Checksum
from .isa import Isa

FEW = 16  # chunks, of 1 MB at most, that one thread reads: to wake others and wait for them would take longer


@inline
def sum_chunk(words, n, size, chunk, sums):
    """sums[chunk] = what chunk `chunk` of `size` of the `n` words comes to."""
    h = T.alloc_buffer((LANES,), "uint32")
    sum_ = T.alloc_buffer((1,), "uint64")
    for lane in T.vectorized(LANES):
        h[lane] = T.Cast("uint32", lane)
    first: T.let = chunk * size
    count: T.let = T.min(n - first, size)
    for step in range(count // LANES):
        for lane in T.vectorized(LANES):
            mix(h, lane, T.Cast("uint32", words[first + step * LANES + lane]))
    for lane in range(count % LANES):
        mix(h, lane, T.Cast("uint32", words[first + count // LANES * LANES + lane]))
    sum_[0] = T.Cast("uint64", chunk)
    for lane in range(LANES):
        fold(sum_, T.Cast("uint64", h[lane]))
    sums[chunk] = sum_[0]


@cache
def checksum(spec: Checksum, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Checksum`."""

    @script.prim_func(s_tir=True)
    def kernel(words_: T.handle) -> T.int64:
        T.func_attr({"tirx.noalias": True, "global_symbol": "checksum"})
        n = T.int64()
        words = match_buffer(words_, (n,), spec.dtype)
        size: T.let = T.max(T.int64(CHUNK), (n + CHUNKS * LANES - 1) // (CHUNKS * LANES) * LANES)
        chunks: T.let = (n + size - 1) // size
        # On the stack, as TVM gives no workspace back behind a `return`: all of it is written, or its size would not be known.
        sums = T.alloc_buffer((CHUNKS,), "uint64")
        for i in range(CHUNKS):
            sums[i] = T.uint64(0)
        total = T.alloc_buffer((1,), "uint64")
        if chunks <= FEW:
            for chunk in range(chunks):
                sum_chunk(words, n, size, chunk, sums)
        else:
            for chunk in T.parallel(chunks):
                sum_chunk(words, n, size, chunk, sums)
        total[0] = T.Cast("uint64", n)
        for chunk in range(chunks):
            fold(total, sums[chunk])
        return T.reinterpret("int64", total[0])

    return kernel
