"""Activations on their own: `out = act(x)`, element by element, for tensors of any rank."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from .vector_math import ACTIVATIONS

CHUNK = 8192  # elements of one task


def naive(x, name: str):
    """Oracle, in float64, of a float array of any shape."""
    return ACTIVATIONS[name].naive(x.astype("float64"))


@cache
def elementwise(rank: int, name: str, dtype: str = "float32") -> tvm.tirx.PrimFunc:
    """PrimFunc (x, out), both `dtype` of one shape with `rank` dimensions of any size."""
    act = ACTIVATIONS[name].emit
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
