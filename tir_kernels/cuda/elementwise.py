"""Activations on their own: a thread a vector of elements."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import inline
from ..spec.activation import Activation
from ..vector_math import EMIT
from .gpu import Gpu, kernel_name
from .launch import THREADS, blocks_for, left_to_nvcc
from .vectors import aligned, width


@cache
def elementwise(spec: Activation, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Activation`."""
    rank, name, dtype = spec.rank, spec.name, spec.dtype
    act = EMIT[name]
    lanes = width(dtype)
    shape = [tvm.tirx.Var(f"n{axis}", "int64") for axis in range(rank)]
    size = tvm.tirx.IntImm("int64", 1)
    for dim in shape:
        size = size * dim

    @inline
    def apply(value, lane):
        value[lane] = T.Cast(dtype, act(T.Cast("float32", value[lane])))

    @inline
    def apply_each(flat, flat_out, value, first, count):
        for lane in T.unroll(lanes):
            if T.Cast("int64", lane) < count:
                value[lane] = flat[first + lane]
                apply(value, lane)
                flat_out[first + lane] = value[lane]

    @inline
    def apply_vector(flat, flat_out, value, first):
        for lane in T.vectorized(lanes):
            value[lane] = flat[first + lane]
        for lane in T.unroll(lanes):
            apply(value, lane)
        for lane in T.vectorized(lanes):
            flat_out[first + lane] = value[lane]

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name(name, dtype)})
        x = match_buffer(x_, shape, dtype)
        out = match_buffer(out_, shape, dtype)
        flat = T.decl_buffer((size,), dtype, data=x.data)
        flat_out = T.decl_buffer((size,), dtype, data=out.data)
        with T.launch_thread("blockIdx.x", blocks_for(size, THREADS * lanes)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            left_to_nvcc()
            value = T.alloc_local((lanes,), dtype)
            first: T.let = T.Cast("int64", block) * (THREADS * lanes) + T.Cast("int64", thread * lanes)
            if first + lanes <= size:
                if aligned(flat, flat_out):
                    apply_vector(flat, flat_out, value, first)
                else:
                    apply_each(flat, flat_out, value, first, T.int64(lanes))
            else:
                apply_each(flat, flat_out, value, first, size - first)

    return kernel
