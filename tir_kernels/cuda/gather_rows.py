"""Row selection: a thread copies a vector of a row, or an element where rows are no whole number of vectors."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..spec.gather_rows import GatherRows
from .gpu import Gpu, kernel_name
from .guards import check_index, match_status, reporting
from .launch import for_each
from .vectors import aligned, width


@cache
def gather_rows(spec: GatherRows, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `GatherRows`."""
    channels, dtype = spec.channels, spec.dtype
    lanes = width(dtype, channels)
    pieces = channels // lanes  # of a row

    @inline
    def copy(x, out, source, n, row, first):
        if T.And(source >= 0, source < n):
            if aligned(x, out):
                for lane in T.vectorized(lanes):
                    out[row, first + lane] = x[source, first + lane]
            else:
                for lane in range(lanes):
                    out[row, first + lane] = x[source, first + lane]
        else:
            for lane in range(lanes):
                out[row, first + lane] = T.Cast(dtype, 0)

    @inline
    def copy_piece(x, index, out, n, place):
        copy(x, out, T.Cast("int64", index[place // pieces]), n, place // pieces, place % pieces * lanes)

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, index_: T.handle, status_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("gather_rows", dtype)})
        n, m = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        index = match_buffer(index_, (m,), "int32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (m, channels), dtype)
        check_index(status, index, m, n)
        for_each(m * pieces, lambda place: copy_piece(x, index, out, n, place))

    return reporting(kernel)
