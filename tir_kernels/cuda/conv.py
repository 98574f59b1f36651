"""Dense convolution as products on tensor cores, see `tensor_core`: output voxels are the rows, gathered by their coordinates.

Products want the channels of a voxel side by side, and those of a tap: x and the weight are copied so first, with zeros up to
whole chunks, which makes every copy an aligned one.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_EDGE, RAISE_KERNEL_SIZE, RAISE_VOXELS
from ..script import drop_parameters
from ..spec.conv3d import Conv3d, reach
from .epilogue import Epilogue
from .gpu import Gpu, kernel_name, stating
from .launch import THREADS, left_to_nvcc
from .partial_sums import add_parts, allocate_parts, finish_part, part_of, parts_for
from .tensor_core import Gemm, Operand, Steps, tile_for
from .vectors import width

MOST_VOXELS = 2**31 - 1 - 128  # of a batch element, numbered by int32 up to the end of the last tile

SIDE = 32  # channels, and places, that a block exchanges at a time


def channels_last(source, target) -> None:
    """Emit a launch: target [outer, places, channels] = source [outer, own channels, places], zeros for further channels."""
    outer, own, places = source.shape
    channels = target.shape[2]
    across, down = (places + (SIDE - 1)) // SIDE, -(-int(channels) // SIDE)
    blocks = T.max(outer * across * down, T.int64(1))
    lines = THREADS // SIDE
    with T.launch_thread("blockIdx.x", blocks) as block, T.launch_thread("threadIdx.x", THREADS) as thread:
        tile = T.alloc_buffer((SIDE, SIDE + 1), source.dtype, scope="shared")  # one more: columns in different banks
        which = T.bind(T.Cast("int64", block) // down)
        first_channel = T.bind(T.Cast("int64", block) % down * SIDE)
        first_place = T.bind(which % T.max(across, T.int64(1)) * SIDE)
        element = T.bind(which // T.max(across, T.int64(1)))
        inside = T.bind(element < outer)
        for i in range(SIDE // lines):
            line = T.bind(i * lines + thread // SIDE)
            channel, place = first_channel + line, first_place + thread % SIDE
            there = T.And(T.And(inside, channel < own), place < places)
            value = T.if_then_else(there, source[element, channel, place], T.Cast(source.dtype, T.float32(0)))
            T.buffer_store(tile, value, [line, thread % SIDE])
        for i in range(SIDE // lines):
            line = T.bind(i * lines + thread // SIDE)
            channel, place = first_channel + thread % SIDE, first_place + line
            value = tile[thread % SIDE, line]
            with T.If(T.And(T.And(inside, channel < channels), place < places)), T.Then():
                T.buffer_store(target, value, [element, place, channel])


@cache
def conv3d(spec: Conv3d, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Conv3d`."""
    cin, cout, geometry, dtype, has_residual = spec.cin, spec.cout, spec.geometry, spec.dtype, spec.has_residual
    taps, (_, kernel_h, kernel_w) = geometry.taps, geometry.kernel
    vector = width(dtype)
    channels = -(-cin // vector) * vector
    gemm = Gemm(tile_for(cout, dtype), dtype, channels, spec.products)
    tile = gemm.tile
    across = -(-cout // tile.cols)

    def neighbour(tap, voxel, at, size, size_out):
        """The input voxel of a tap of an output voxel, or -1 where there is none: int32. `at`: int32 [4], local."""
        T.buffer_store(at, voxel // size_out[2], [0])
        T.buffer_store(at, voxel - at[0] * size_out[2], [2])
        T.buffer_store(at, at[0] // size_out[1], [3])
        T.buffer_store(at, at[0] - at[3] * size_out[1], [1])
        T.buffer_store(at, at[3], [0])
        steps = tap // (kernel_h * kernel_w), tap // kernel_w % kernel_h, tap % kernel_w
        inside, place = tvm.tirx.IntImm("bool", True), T.int32(0)
        for axis in range(3):
            own = at[axis] * geometry.stride[axis] + steps[axis] * geometry.dilation[axis] - geometry.padding[axis]
            if axis + 2 in spec.edges:
                own = T.max(T.min(own, size[axis] - 1), 0)
            T.buffer_store(at, own, [axis])
            if not spec.edges:
                inside = T.And(inside, T.And(at[axis] >= 0, at[axis] < size[axis]))
            place = place * size[axis] + at[axis]
        return T.if_then_else(inside, place, -1)

    def multiply(x, weight, batch, size, size_out, epilogue):
        """Emit the launches. x [B, voxels, channels], weight [Cout, taps, channels]."""
        voxels = size_out[0] * size_out[1] * size_out[2]
        tiles = (voxels + (tile.rows - 1)) // tile.rows  # of a batch element
        tiles_of_all = T.max(batch * tiles, T.int64(1))
        parts = T.bind(parts_for(tiles_of_all * across, T.int64(taps * gemm.steps)))
        sums_of_parts = allocate_parts(parts, batch * voxels, cout)
        with (
            T.launch_thread("blockIdx.x", tiles_of_all * across) as block,
            T.launch_thread("blockIdx.y", parts) as part,
            T.launch_thread("threadIdx.x", tile.threads) as thread,
            left_to_nvcc(),
        ):
            shared, sums = gemm.allocate()
            # in memory, that is in registers: TVM simplifies such quotients wherever they are used
            element = T.alloc_buffer((1,), "int64", scope="local")
            place = T.alloc_buffer((2,), "int32", scope="local")
            own_size, own_out, at = (T.alloc_buffer((4,), "int32", scope="local") for _ in range(3))
            row_tile, least = T.Cast("int64", block // across), T.max(tiles, T.int64(1))
            T.buffer_store(element, row_tile // least, [0])
            b = element[0]
            T.buffer_store(place, T.Cast("int32", row_tile - b * least) * tile.rows, [0])
            T.buffer_store(place, T.if_then_else(b < batch, T.Cast("int32", voxels), 0), [1])
            first_voxel, count = place[0], place[1]
            for axis in range(3):
                T.buffer_store(own_size, T.Cast("int32", size[axis]), [axis])
                T.buffer_store(own_out, T.max(T.Cast("int32", size_out[axis]), 1), [axis])
            first_column = T.bind(T.Cast("int32", block % across) * tile.cols)
            begin, end = part_of(taps * gemm.steps, T.Cast("int32", part), T.Cast("int32", parts))

            def source(tap, r):
                voxel = T.max(T.min(first_voxel + r, count - 1), 0)
                found = neighbour(tap, voxel, at, own_size, own_out)
                return T.if_then_else(first_voxel + r < count, found, -1)

            steps = Steps(T.bind(begin), T.bind(end), lambda i: i, source)
            of_x = Operand(x, lambda row, c: [T.min(b, T.max(batch - 1, T.int64(0))), T.Cast("int64", row), c])
            of_weight = Operand(weight, lambda tap, column, c: [first_column + column, tap, c])
            columns = cout - first_column
            gemm.multiply(shared, sums, thread, steps, of_x, of_weight, columns, True)

            def store(r, column, values):
                with T.If(first_voxel + r < count), T.Then():
                    row = T.bind(b * voxels + T.Cast("int64", first_voxel + r))
                    at = first_column + column
                    finish_part(sums_of_parts, part, parts, epilogue, values, row, at, columns - column, False)

            again = gemm.again
            gemm.finish(shared, sums, thread, lambda *at: again(steps, of_x, of_weight, *at), store, columns, along_rows=True)
        add_parts(sums_of_parts, parts, batch * voxels, cout, epilogue)

    batch = tvm.tirx.Var("batch", "int64")
    size, size_out = ([tvm.tirx.Var(f"{name}{axis}", "int64") for axis in "dhw"] for name in ("", "out_"))

    def check_size():
        """Emit, on the host, which knows sizes: raise for the first axis along which the kernel is larger than the input, or
        which has no edge to replicate."""
        axes = zip(size, geometry.padding, reach(geometry), strict=True)
        for axis, (n, pad, covered) in enumerate(axes):
            with T.If(n + 2 * pad < covered), T.Then():
                T.evaluate(T.call_packed(RAISE_KERNEL_SIZE, axis + 2, n + 2 * pad, covered))
            if axis + 2 in spec.edges:
                with T.If(n < 1), T.Then():
                    T.evaluate(T.call_packed(RAISE_EDGE, axis + 2))

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, residual_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("conv3d", gemm.of, str(tile))})
        x = match_buffer(x_, (batch, cin, *size), dtype)
        weight = match_buffer(weight_, (cout, cin, *geometry.kernel), dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        out = match_buffer(out_, (batch, cout, *size_out), dtype)
        residual = match_buffer(residual_, (batch, cout, *size_out), dtype)
        check_size()
        voxels_in: T.let = size[0] * size[1] * size[2]
        voxels: T.let = size_out[0] * size_out[1] * size_out[2]
        if T.max(voxels_in, voxels) > MOST_VOXELS:
            T.call_packed(RAISE_VOXELS, T.max(voxels_in, voxels), T.int64(MOST_VOXELS))
        flat = T.decl_buffer((batch, cin, voxels_in), dtype, data=x.data)
        flat_weight = T.decl_buffer((T.int64(cout), T.int64(cin), T.int64(taps)), dtype, data=weight.data)
        flat_out = T.decl_buffer((batch, cout, voxels), dtype, data=out.data)
        flat_residual = T.decl_buffer((batch, cout, voxels), dtype, data=(residual if has_residual else out).data)
        # as flat scratch under another shape: TVM takes very long to find which part of a shape is touched
        flat_own = T.alloc_buffer((T.max(batch * voxels_in, T.int64(1)) * channels,), dtype)
        own = T.decl_buffer((batch, voxels_in, channels), dtype, data=flat_own.data)
        flat_own_weight = T.alloc_buffer((cout * taps * channels,), dtype)
        own_weight = T.decl_buffer((cout, taps, channels), dtype, data=flat_own_weight.data)
        channels_last(flat, own)
        channels_last(flat_weight, own_weight)
        at = T.meta_var(lambda row, column: [row // voxels, column, row % voxels])
        epilogue = T.meta_var(Epilogue(flat_out, spec.activation, bias, flat_residual if has_residual else None, at=at))
        multiply(own, own_weight, batch, size, size_out, epilogue)

    return stating(kernel if has_residual else drop_parameters(kernel, "residual"), tile.registers)
