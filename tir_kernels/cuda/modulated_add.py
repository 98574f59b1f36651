"""Residual addition with a gate: a warp a row."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters, inline
from ..spec.modulated_add import ModulatedAdd
from .gpu import WARP, Gpu, kernel_name
from .guards import batch_element, check_batch_index, match_status, reporting
from .launch import THREADS, blocks_for
from .reductions import WARPS, each_of_lane


@cache
def modulated_add(spec: ModulatedAdd, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `ModulatedAdd`."""
    channels, dtype, has_index = spec.channels, spec.dtype, spec.has_index

    @inline
    def add(x, y, gate, out, row, b, c):
        out[row, c] = T.Cast(dtype, T.Cast("float32", x[row, c]) + T.Cast("float32", y[row, c]) * gate[b, c])

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, y_: T.handle, gate_: T.handle, batch_index_: T.handle, status_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("modulated_add", dtype)})
        n, batch = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        y = match_buffer(y_, (n, channels), dtype)
        gate = match_buffer(gate_, (batch, channels), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (n, channels), dtype)
        if has_index:
            check_batch_index(status, batch_index, n, batch)
        with T.launch_thread("blockIdx.x", blocks_for(n, WARPS)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            element = T.alloc_local((1,), "int64")
            row: T.let = T.Cast("int64", block) * WARPS + T.Cast("int64", thread // WARP)
            if T.And(row < n, batch > 0):  # without batch elements every row was refused
                element[0] = batch_element(batch_index, row, batch) if has_index else T.int64(0)
                each_of_lane(channels, thread % WARP, lambda step, c: add(x, y, gate, out, row, element[0], c), kept=False)

    return reporting(kernel) if has_index else drop_parameters(kernel, "batch_index", "status")
