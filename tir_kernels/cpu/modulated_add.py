"""Residual addition with a gate."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters
from ..spec.modulated_add import ModulatedAdd
from .guards import check_batch_index
from .isa import Isa

CHUNK = 16  # rows of one task


@cache
def modulated_add(spec: ModulatedAdd, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `ModulatedAdd`."""
    channels, dtype, has_index = spec.channels, spec.dtype, spec.has_index

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, y_: T.handle, gate_: T.handle, batch_index_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"modulated_add_{dtype}"})
        n, batch = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        y = match_buffer(y_, (n, channels), dtype)
        gate = match_buffer(gate_, (batch, channels), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        out = match_buffer(out_, (n, channels), dtype)
        if has_index:
            check_batch_index(batch_index, n, batch)
        for chunk in T.parallel((n + CHUNK - 1) // CHUNK):
            for i in range(T.min(T.int64(CHUNK), n - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                b: T.let = T.Cast("int64", batch_index[row]) if has_index else T.int64(0)
                for c in range(channels):
                    out[row, c] = T.Cast(dtype, T.Cast("float32", x[row, c]) + T.Cast("float32", y[row, c]) * gate[b, c])

    return kernel if has_index else drop_parameters(kernel, "batch_index")
