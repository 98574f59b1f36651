"""Layer normalisation of rows, with the modulation of adaptive layer norm: a warp a row, mean and variance in two passes."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters, inline
from ..spec.layer_norm import LayerNorm
from ..vector_math import EMIT
from .gpu import WARP, Gpu, kernel_name
from .guards import batch_element, check_batch_index, match_status, reporting
from .launch import THREADS, blocks_for, left_to_nvcc
from .reductions import WARPS, add, each_of_lane, over_lanes

KEPT = 1024  # channels, at most, that a warp keeps in registers, 32 a lane; longer rows are read again from cache


@cache
def layer_norm(spec: LayerNorm, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `LayerNorm`."""
    channels, dtype, has_index, eps = spec.channels, spec.dtype, spec.has_index, spec.eps
    act = EMIT[spec.activation]
    is_kept = channels <= KEPT
    count = max(channels, 1)

    def kept_or_read(x, kept, row, step, c):
        return kept[step] if is_kept else T.Cast("float32", x[row, c])

    @inline
    def add_element(x, kept, total, row, step, c):
        if is_kept:
            kept[step] = T.Cast("float32", x[row, c])
        total[0] += kept_or_read(x, kept, row, step, c)

    @inline
    def add_square(x, kept, total, mean, row, step, c):
        total[0] += (kept_or_read(x, kept, row, step, c) - mean) * (kept_or_read(x, kept, row, step, c) - mean)

    @inline
    def store(x, kept, mean, scaling, weight, bias, scale, shift, b, out, row, step, c):
        normal: T.let = (kept_or_read(x, kept, row, step, c) - mean) * scaling * weight[c] + bias[c]
        out[row, c] = T.Cast(dtype, act(normal * (T.float32(1) + scale[b, c]) + shift[b, c]))

    @script.prim_func(s_tir=True)
    def kernel(
        x_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        scale_: T.handle,
        shift_: T.handle,
        batch_index_: T.handle,
        status_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("layer_norm", dtype)})
        n, batch = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        weight = match_buffer(weight_, (channels,), "float32")
        bias = match_buffer(bias_, (channels,), "float32")
        scale = match_buffer(scale_, (batch, channels), "float32")
        shift = match_buffer(shift_, (batch, channels), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (n, channels), dtype)
        if has_index:
            check_batch_index(status, batch_index, n, batch)
        with T.launch_thread("blockIdx.x", blocks_for(n, WARPS)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            left_to_nvcc()
            kept = T.alloc_local((channels // WARP + 1 if is_kept else 1,), "float32")
            total = T.alloc_local((1,), "float32")
            mean = T.alloc_local((1,), "float32")
            element = T.alloc_local((1,), "int64")
            row: T.let = T.Cast("int64", block) * WARPS + T.Cast("int64", thread // WARP)
            if T.And(row < n, batch > 0):  # without batch elements every row was refused
                element[0] = batch_element(batch_index, row, batch) if has_index else T.int64(0)
                total[0] = T.float32(0)
                each_of_lane(channels, thread % WARP, lambda step, c: add_element(x, kept, total, row, step, c), is_kept)
                over_lanes(total, 0, add)
                mean[0] = total[0] / T.float32(count)
                total[0] = T.float32(0)
                each_of_lane(
                    channels, thread % WARP, lambda step, c: add_square(x, kept, total, mean[0], row, step, c), is_kept
                )
                over_lanes(total, 0, add)
                total[0] = T.float32(1) / T.sqrt(total[0] / T.float32(count) + T.float32(eps))
                each_of_lane(
                    channels,
                    thread % WARP,
                    lambda step, c: store(
                        x, kept, mean[0], total[0], weight, bias, scale, shift, element[0], out, row, step, c
                    ),
                    is_kept,
                )

    return reporting(kernel) if has_index else drop_parameters(kernel, "batch_index", "status")
