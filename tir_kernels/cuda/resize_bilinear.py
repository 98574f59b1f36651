"""Bilinear interpolation of images: a thread an output."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_RESIZE
from ..places import place
from ..spec.resize_bilinear import ResizeBilinear
from .gpu import Gpu, kernel_name
from .launch import for_each, left_to_nvcc


@cache
def resize_bilinear(spec: ResizeBilinear, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `ResizeBilinear`."""
    dtype = spec.dtype
    planes_in, planes_out = ([tvm.tirx.Var(f"{name}{axis}", "int64") for axis in "hw"] for name in ("", "out_"))
    batch, channels = (tvm.tirx.Var(name, "int64") for name in ("b", "c"))

    def check():
        """Emit, on the host, which knows sizes: raise where there is nothing to resize."""
        (height, width), (height_out, width_out) = planes_in, planes_out
        with T.If(T.And(T.Or(height < 1, width < 1), T.And(height_out > 0, width_out > 0))), T.Then():
            T.evaluate(T.call_packed(RAISE_RESIZE, height, width, height_out, width_out))

    def around(i, size, size_out):
        """The two voxels around output i of an axis, and the share of the second one."""
        low = T.alloc_buffer((1,), "int64", scope="local")
        share = T.alloc_buffer((1,), "float32", scope="local")
        T.buffer_store(share, place(i, size, size_out, spec.align_corners), [0])
        T.buffer_store(low, T.min(T.Cast("int64", share[0]), size - 1), [0])
        T.buffer_store(share, share[0] - T.Cast("float32", low[0]), [0])
        return (low[0], T.min(low[0] + 1, size - 1)), share[0]

    def resize(x, out):
        height_out, width_out = (T.max(size, T.int64(1)) for size in planes_out)

        def one(at):
            with left_to_nvcc():
                own = T.alloc_buffer((3,), "int64", scope="local")
                T.buffer_store(own, at // width_out, [0])
                T.buffer_store(own, at - own[0] * width_out, [1])
                T.buffer_store(own, own[0] // height_out, [2])
                plane, j = own[2], own[1]
                rows, share = around(own[0] - plane * height_out, planes_in[0], height_out)
                columns, column_share = around(j, planes_in[1], width_out)
                line = T.alloc_buffer((2,), "float32", scope="local")
                for side, column in enumerate(columns):
                    low, high = (T.Cast("float32", x[plane, row, column]) for row in rows)
                    T.buffer_store(line, (T.float32(1) - share) * low + share * high, [side])
                value = (T.float32(1) - column_share) * line[0] + column_share * line[1]
                T.buffer_store(out, T.Cast(dtype, value), [at])

        for_each(batch * channels * planes_out[0] * planes_out[1], one)

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("resize_bilinear", dtype)})
        x_nd = match_buffer(x_, (batch, channels, *planes_in), dtype)
        out_nd = match_buffer(out_, (batch, channels, *planes_out), dtype)
        check()
        x = T.decl_buffer((batch * channels, *planes_in), dtype, data=x_nd.data)
        out = T.decl_buffer((batch * channels * planes_out[0] * planes_out[1],), dtype, data=out_nd.data)
        resize(x, out)

    return kernel
