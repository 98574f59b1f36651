"""A checksum over the bits of an array: a block a chunk, a thread a lane, and one thread that puts chunks together."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..checksum import fold, mix
from ..script import inline
from ..spec.checksum import CHUNK, CHUNKS, LANES, Checksum
from .gpu import Gpu, kernel_name


@cache
def checksum(spec: Checksum, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Checksum`."""

    @inline
    def sum_chunks(words, n, size, chunks, sums):
        with T.launch_thread("blockIdx.x", T.max(chunks, T.int64(1))) as block:
            lane = T.launch_thread("threadIdx.x", LANES)
            own = T.alloc_local((1,), "uint32")
            lanes = T.alloc_shared((LANES,), "uint32")
            sum_ = T.alloc_local((1,), "uint64")
            first: T.let = T.Cast("int64", block) * size
            count: T.let = T.min(n - first, size)
            own[0] = T.Cast("uint32", lane)
            for step in range((count - T.Cast("int64", lane) + LANES - 1) // LANES):
                mix(own, 0, T.Cast("uint32", words[first + step * LANES + T.Cast("int64", lane)]))
            lanes[lane] = own[0]
            T.tvm_storage_sync("shared")
            if lane == 0:
                sum_[0] = T.Cast("uint64", block)
                for other in range(LANES):
                    fold(sum_, T.Cast("uint64", lanes[other]))
                sums[block] = sum_[0]

    @inline
    def sum_all(sums, n, chunks, out):
        with T.launch_thread("blockIdx.x", 1):
            T.launch_thread("threadIdx.x", 1)
            total = T.alloc_local((1,), "uint64")
            total[0] = T.Cast("uint64", n)
            for chunk in range(chunks):
                fold(total, sums[chunk])
            out[0] = T.reinterpret("int64", total[0])

    @script.prim_func(s_tir=True)
    def kernel(words_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("checksum")})
        n = T.int64()
        words = match_buffer(words_, (n,), spec.dtype)
        out = match_buffer(out_, (1,), "int64")
        sums = T.alloc_buffer((CHUNKS,), "uint64")
        size: T.let = T.max(T.int64(CHUNK), (n + CHUNKS * LANES - 1) // (CHUNKS * LANES) * LANES)
        chunks: T.let = (n + size - 1) // size
        sum_chunks(words, n, size, chunks, sums)
        sum_all(sums, n, chunks, out)

    return kernel
