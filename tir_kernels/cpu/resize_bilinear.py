"""Bilinear interpolation of images: a task is some rows of a plane. For a row two rows of x are blended first, into a line that
stays in the L1 cache; its columns are then looked up there."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_RESIZE
from ..script import inline
from ..spec.resize_bilinear import ResizeBilinear, place
from .guards import refuse
from .isa import Isa

ROWS = 16  # of one task


@cache
def resize_bilinear(spec: ResizeBilinear, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `ResizeBilinear`."""
    dtype = spec.dtype
    batch, channels, height, width, height_out, width_out = (
        tvm.tirx.Var(name, "int64") for name in ("b", "c", "h", "w", "h_out", "w_out")
    )

    @inline
    def find(at, share, i, size, size_out):
        """at[i] = the voxel before output i along an axis, share[i] = the weight of the one behind it"""
        numerator: T.let = place(i, size, size_out, spec.align_corners)[0]
        denominator: T.let = T.max(place(i, size, size_out, spec.align_corners)[1], T.int64(1))
        at[i] = T.min(T.max(numerator, T.int64(0)) // denominator, size - 1)
        share[i] = T.Cast("float32", T.max(numerator, T.int64(0)) - at[i] * denominator) / T.Cast("float32", denominator)

    @inline
    def blend(line, x, low, high, share):
        """line = a row of x and the one behind it, in their shares"""
        for j in range(width):
            line[j] = (T.float32(1) - share) * T.Cast("float32", x[low + j]) + share * T.Cast("float32", x[high + j])

    @inline
    def resize_row(line, column, share, out, target):
        for j in range(width_out):
            low: T.let = line[column[j]]
            high: T.let = line[T.min(column[j] + 1, width - 1)]
            out[target + j] = T.Cast(dtype, (T.float32(1) - share[j]) * low + share[j] * high)

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"resize_bilinear_{dtype}"})
        x_nd = match_buffer(x_, (batch, channels, height, width), dtype)
        out_nd = match_buffer(out_, (batch, channels, height_out, width_out), dtype)
        if T.And(T.Or(height < 1, width < 1), T.And(height_out > 0, width_out > 0)):
            refuse(RAISE_RESIZE, height, width, height_out, width_out)
        x = T.decl_buffer((batch * channels * height * width,), dtype, data=x_nd.data)
        out = T.decl_buffer((batch * channels * height_out * width_out,), dtype, data=out_nd.data)
        row = T.alloc_buffer((T.max(height_out, T.int64(1)),), "int64")
        row_share = T.alloc_buffer((T.max(height_out, T.int64(1)),), "float32")
        column = T.alloc_buffer((T.max(width_out, T.int64(1)),), "int64")
        column_share = T.alloc_buffer((T.max(width_out, T.int64(1)),), "float32")
        for i in range(height_out):
            find(row, row_share, i, height, height_out)
        for j in range(width_out):
            find(column, column_share, j, width, width_out)
        blocks: T.let = (height_out + ROWS - 1) // ROWS
        for task in T.parallel(batch * channels * blocks):
            line = T.alloc_buffer((T.max(width, T.int64(1)),), "float32")
            plane: T.let = task // blocks
            for r in range(T.min(T.int64(ROWS), height_out - task % blocks * ROWS)):
                i: T.let = task % blocks * ROWS + r
                low: T.let = (plane * height + row[i]) * width
                high: T.let = (plane * height + T.min(row[i] + 1, height - 1)) * width
                blend(line, x, low, high, row_share[i])
                resize_row(line, column, column_share, out, (plane * height_out + i) * width_out)

    return kernel
