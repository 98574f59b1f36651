"""Voxels around points and their trilinear weights: a thread a point."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..integers import divide
from ..points import floor, position
from ..script import drop_parameters, inline
from ..spec.trilinear import CORNERS, SUM_BIAS, Trilinear
from ..vector_math import bind
from .coordinate_index import match_index
from .gpu import Gpu, kernel_name
from .guards import match_status, reporting
from .launch import for_each, left_to_nvcc
from .quantize import check_points


@cache
def trilinear(spec: Trilinear, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Trilinear`."""
    stride, normalize, has_index = spec.stride, spec.normalize, spec.has_index

    @inline
    def along(axis, points, row, voxel_size, origin, base, sides):
        """base[axis] = the voxel below; sides[d, axis] = its weight (d = 0), and that of the voxel above"""
        fine = T.meta_var(bind(position(points, row, axis, voxel_size, origin)))
        cell = T.meta_var(bind(floor(fine)))
        place = T.meta_var(bind(fine if stride[axis] == 1 else fine / T.float32(stride[axis])))
        base[axis] = divide(cell, stride[axis])
        sides[0, axis] = T.Cast("float32", base[axis] + 1) - place
        sides[1, axis] = place - T.Cast("float32", base[axis])

    def all_axes(*buffers):
        for axis in range(3):
            along(axis, *buffers)

    @inline
    def write(points, row, voxel_size, batch_index, origin, voxels, index, weight):
        left_to_nvcc()
        base = T.alloc_local((3,), "int32")
        sides = T.alloc_local((2, 3), "float32")
        own = T.alloc_local((CORNERS,), "float32")
        found = T.alloc_local((1,), "int32")
        total = T.alloc_local((1,), "float32")
        all_axes(points, row, voxel_size, origin, base, sides)
        batch: T.let = batch_index[row] if has_index else T.int32(0)
        total[0] = T.float32(0)
        for corner in T.unroll(CORNERS):
            dx: T.let = corner // 4
            dy: T.let = corner // 2 % 2
            dz: T.let = corner % 2
            voxels.find((batch, base[0] + dx, base[1] + dy, base[2] + dz), found)
            index[row, corner] = found[0]
            own[corner] = T.float32(0)
            if found[0] >= 0:
                own[corner] = sides[dx, 0] * sides[dy, 1] * sides[dz, 2]
            total[0] = total[0] + own[corner]
        for corner in T.unroll(CORNERS):
            weight[row, corner] = own[corner] / (total[0] + T.float32(SUM_BIAS)) if normalize else own[corner]

    @script.prim_func(s_tir=True)
    def kernel(
        points_: T.handle,
        voxel_size_: T.handle,
        batch_index_: T.handle,
        origin_: T.handle,
        plan_: T.handle,
        slots_: T.handle,
        keys_: T.handle,
        status_: T.handle,
        index_: T.handle,
        weight_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("trilinear")})
        n = T.int64()
        points = match_buffer(points_, (n, 3), "float32")
        voxel_size = match_buffer(voxel_size_, (3,), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        origin = match_buffer(origin_, (3,), "float32")
        voxels = T.meta_var(match_index(plan_, slots_, keys_))
        status = T.meta_var(match_status(status_))
        index = match_buffer(index_, (n, CORNERS), "int32")
        weight = match_buffer(weight_, (n, CORNERS), "float32")
        check_points(status, points, n, voxel_size, batch_index if has_index else None, origin)
        for_each(n, lambda row: write(points, row, voxel_size, batch_index, origin, voxels, index, weight))

    return reporting(kernel if has_index else drop_parameters(kernel, "batch_index"))
