"""Voxels around points and their trilinear weights; a chunk of points is one thread's."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..integers import divide
from ..points import floor, is_beyond, position
from ..script import drop_parameters, inline
from ..spec.coordinate_index import BATCH_LIMIT
from ..spec.trilinear import CORNERS, SUM_BIAS, Trilinear
from ..vector_math import bind
from .coordinate_index import match_index
from .guards import check_batch_index
from .isa import Isa
from .quantize import CHUNK, check_grid_numbers, report_strays


@cache
def trilinear(spec: Trilinear, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Trilinear`."""
    stride, normalize, has_index = spec.stride, spec.normalize, spec.has_index

    @inline
    def along(axis, points, row, voxel_size, origin, base, sides, stray):
        """base[axis] = the voxel below; sides[d, axis] = its weight (d = 0), and that of the voxel above"""
        fine = T.meta_var(bind(position(points, row, axis, voxel_size, origin)))
        cell = T.meta_var(bind(floor(fine)))
        place = T.meta_var(bind(fine if stride[axis] == 1 else fine / T.float32(stride[axis])))
        base[axis] = divide(cell, stride[axis])
        sides[0, axis] = T.Cast("float32", base[axis] + 1) - place
        sides[1, axis] = place - T.Cast("float32", base[axis])
        stray[0] = stray[0] | T.Cast("int32", is_beyond(cell))

    def all_axes(*buffers):
        for axis in range(3):
            along(axis, *buffers)

    @script.prim_func(s_tir=True)
    def kernel(
        points_: T.handle,
        voxel_size_: T.handle,
        batch_index_: T.handle,
        origin_: T.handle,
        plan_: T.handle,
        slots_: T.handle,
        keys_: T.handle,
        index_: T.handle,
        weight_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "trilinear"})
        n = T.int64()
        points = match_buffer(points_, (n, 3), "float32")
        voxel_size = match_buffer(voxel_size_, (3,), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        origin = match_buffer(origin_, (3,), "float32")
        voxels = T.meta_var(match_index(plan_, slots_, keys_))
        index = match_buffer(index_, (n, CORNERS), "int32")
        weight = match_buffer(weight_, (n, CORNERS), "float32")
        strays = T.alloc_buffer(((n + CHUNK - 1) // CHUNK,), "int32")
        check_grid_numbers(voxel_size, origin)
        if has_index:
            check_batch_index(batch_index, n, BATCH_LIMIT)
        for chunk in T.parallel((n + CHUNK - 1) // CHUNK):
            stray = T.alloc_buffer((1,), "int32")
            base = T.alloc_buffer((3,), "int32")
            sides = T.alloc_buffer((2, 3), "float32")
            found = T.alloc_buffer((1,), "int32")
            total = T.alloc_buffer((1,), "float32")
            stray[0] = T.int32(0)
            for i in range(T.min(T.int64(CHUNK), n - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                batch: T.let = batch_index[row] if has_index else T.int32(0)
                all_axes(points, row, voxel_size, origin, base, sides, stray)
                total[0] = T.float32(0)
                for corner in range(CORNERS):
                    dx: T.let = corner // 4
                    dy: T.let = corner // 2 % 2
                    dz: T.let = corner % 2
                    voxels.find((batch, base[0] + dx, base[1] + dy, base[2] + dz), found)
                    index[row, corner] = found[0]
                    weight[row, corner] = T.if_then_else(
                        found[0] >= 0, sides[dx, 0] * sides[dy, 1] * sides[dz, 2], T.float32(0)
                    )
                    total[0] = total[0] + weight[row, corner]
                if normalize:
                    for corner in T.vectorized(CORNERS):
                        weight[row, corner] = weight[row, corner] / (total[0] + T.float32(SUM_BIAS))
            strays[chunk] = stray[0]
        report_strays(strays, points, n, voxel_size, origin)

    return kernel if has_index else drop_parameters(kernel, "batch_index")
