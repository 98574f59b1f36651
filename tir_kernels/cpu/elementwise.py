"""Activations on their own, element by element."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.activation import Activation
from ..vector_math import EMIT
from .isa import Isa

CHUNK = 8192  # elements of one task


@cache
def elementwise(spec: Activation, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Activation`."""
    rank, name, dtype = spec.rank, spec.name, spec.dtype
    act = EMIT[name]
    shape = [tvm.tirx.Var(f"n{axis}", "int64") for axis in range(rank)]
    size = tvm.tirx.IntImm("int64", 1)
    for dim in shape:
        size = size * dim

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"{name}_{dtype}"})
        x = match_buffer(x_, shape, dtype)
        out = match_buffer(out_, shape, dtype)
        flat = T.decl_buffer((size,), dtype, data=x.data)
        flat_out = T.decl_buffer((size,), dtype, data=out.data)
        for chunk in T.parallel((size + CHUNK - 1) // CHUNK):
            for i in range(T.min(T.int64(CHUNK), size - chunk * CHUNK)):
                flat_out[chunk * CHUNK + i] = T.Cast(dtype, act(T.Cast("float32", flat[chunk * CHUNK + i])))

    return kernel
