"""Row selection: a thread an element, so that the threads of a warp read and write side by side."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.gather_rows import GatherRows
from .gpu import Gpu, kernel_name
from .guards import check_index, match_status, reporting
from .launch import THREADS, blocks_for


@cache
def gather_rows(spec: GatherRows, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `GatherRows`."""
    channels, dtype = spec.channels, spec.dtype

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, index_: T.handle, status_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("gather_rows", dtype)})
        n, m = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        index = match_buffer(index_, (m,), "int32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (m, channels), dtype)
        check_index(status, index, m, n)
        with T.launch_thread("blockIdx.x", blocks_for(m * channels)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            place: T.let = T.Cast("int64", block) * THREADS + T.Cast("int64", thread)
            if place < m * channels:
                source: T.let = T.Cast("int64", index[place // channels])
                if T.And(source >= 0, source < n):
                    out[place // channels, place % channels] = x[source, place % channels]
                else:
                    out[place // channels, place % channels] = T.Cast(dtype, 0)

    return reporting(kernel)
