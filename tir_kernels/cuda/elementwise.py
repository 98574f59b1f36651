"""Activations on their own, element by element."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.activation import Activation
from ..vector_math import EMIT
from .gpu import Gpu, kernel_name
from .launch import THREADS, blocks_for


@cache
def elementwise(spec: Activation, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Activation`."""
    rank, name, dtype = spec.rank, spec.name, spec.dtype
    act = EMIT[name]
    shape = [tvm.tirx.Var(f"n{axis}", "int64") for axis in range(rank)]
    size = tvm.tirx.IntImm("int64", 1)
    for dim in shape:
        size = size * dim

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name(name, dtype)})
        x = match_buffer(x_, shape, dtype)
        out = match_buffer(out_, shape, dtype)
        flat = T.decl_buffer((size,), dtype, data=x.data)
        flat_out = T.decl_buffer((size,), dtype, data=out.data)
        with T.launch_thread("blockIdx.x", blocks_for(size)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            place: T.let = T.Cast("int64", block) * THREADS + T.Cast("int64", thread)
            if place < size:
                flat_out[place] = T.Cast(dtype, act(T.Cast("float32", flat[place])))

    return kernel
