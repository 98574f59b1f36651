"""RMS normalisation of every attention head: a warp a head of a row."""

from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..spec.rms_norm_heads import SMALLEST_NORM, RmsNormHeads
from .gpu import WARP, Gpu, kernel_name
from .launch import THREADS, blocks_for, left_to_nvcc
from .reductions import WARPS, add, each_of_lane, over_lanes

KEPT = 1024  # channels, at most, that a warp keeps in registers


@cache
def rms_norm_heads(spec: RmsNormHeads, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `RmsNormHeads`."""
    heads, depth, dtype = spec.heads, spec.depth, spec.dtype
    is_kept = depth <= KEPT

    def kept_or_read(x, kept, row, step, c):
        return kept[step] if is_kept else T.Cast("float32", x[row, c])

    @inline
    def add_square(x, kept, total, row, step, c):
        if is_kept:
            kept[step] = T.Cast("float32", x[row, c])
        total[0] += kept_or_read(x, kept, row, step, c) * kept_or_read(x, kept, row, step, c)

    @inline
    def store(x, kept, scaling, gamma, out, row, step, c):
        out[row, c] = T.Cast(dtype, kept_or_read(x, kept, row, step, c) * scaling * gamma[row % heads, c])

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, gamma_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("rms_norm_heads", dtype)})
        n = T.int64()
        x_nd = match_buffer(x_, (n, heads, depth), dtype)
        gamma = match_buffer(gamma_, (heads, depth), "float32")
        out_nd = match_buffer(out_, (n, heads, depth), dtype)
        x = T.decl_buffer((n * heads, depth), dtype, data=x_nd.data)
        out = T.decl_buffer((n * heads, depth), dtype, data=out_nd.data)
        with T.launch_thread("blockIdx.x", blocks_for(n * heads, WARPS)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            left_to_nvcc()
            kept = T.alloc_local((depth // WARP + 1 if is_kept else 1,), "float32")
            total = T.alloc_local((1,), "float32")
            row: T.let = T.Cast("int64", block) * WARPS + T.Cast("int64", thread // WARP)
            if row < n * heads:
                total[0] = T.float32(0)
                each_of_lane(depth, thread % WARP, lambda step, c: add_square(x, kept, total, row, step, c), is_kept)
                over_lanes(total, 0, add)
                total[0] = T.float32(np.sqrt(depth)) / T.max(T.sqrt(total[0]), T.float32(SMALLEST_NORM))
                each_of_lane(depth, thread % WARP, lambda step, c: store(x, kept, total[0], gamma, out, row, step, c), is_kept)

    return kernel
