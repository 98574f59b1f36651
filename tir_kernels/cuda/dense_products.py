"""What dense convolutions on tensor cores share: channels side by side, and products whose rows are the places of a grid."""

from collections.abc import Callable
from math import prod

from tvm.script import tirx as T

from .launch import THREADS, left_to_nvcc
from .partial_sums import add_parts, allocate_parts, finish_part, part_of, parts_for
from .tensor_core import Gemm, Operand, Steps

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


def multiply(gemm: Gemm, x, weight, batch, size, places, steps: int, met: Callable, epilogue, bounded: bool = True) -> None:
    """Emit the launches: a row for each place of a grid of `places` (D, H, W) in each batch element, times the weight.

    x [B, voxels, channels] of `size` (D, H, W); weight [columns, steps, channels], with room for one step where there
    is none. `met(axis, step, place, size)`: the coordinate along an axis of the voxel that a place meets at a step, int32.
    Where that is outside of x it counts as zeros; unless `bounded` it never is.
    """
    tile, all_columns, all_steps = gemm.tile, int(weight.shape[0]), steps * gemm.steps
    across, all_places = -(-all_columns // tile.cols), prod(places[1:], start=places[0])
    tiles = (all_places + (tile.rows - 1)) // tile.rows  # of a batch element
    tiles_of_all = T.max(batch * tiles, T.int64(1))
    parts = T.bind(parts_for(tiles_of_all * across, T.int64(all_steps)))
    sums_of_parts = allocate_parts(parts, batch * all_places, all_columns)
    with (
        T.launch_thread("blockIdx.x", tiles_of_all * across) as block,
        T.launch_thread("blockIdx.y", parts) as part,
        T.launch_thread("threadIdx.x", tile.threads) as thread,
        left_to_nvcc(),
    ):
        shared, sums = gemm.allocate()
        # in memory, that is in registers: TVM simplifies such quotients wherever they are used
        element = T.alloc_buffer((1,), "int64", scope="local")
        of_tile = T.alloc_buffer((2,), "int32", scope="local")
        own_size, own_places, at = (T.alloc_buffer((4,), "int32", scope="local") for _ in range(3))
        row_tile, least = T.Cast("int64", block // across), T.max(tiles, T.int64(1))
        T.buffer_store(element, row_tile // least, [0])
        b = element[0]
        T.buffer_store(of_tile, T.Cast("int32", row_tile - b * least) * tile.rows, [0])
        T.buffer_store(of_tile, T.if_then_else(b < batch, T.Cast("int32", all_places), 0), [1])
        first_place, count = of_tile[0], of_tile[1]
        for axis in range(3):
            T.buffer_store(own_size, T.Cast("int32", size[axis]), [axis])
            T.buffer_store(own_places, T.max(T.Cast("int32", places[axis]), 1), [axis])
        first_column = T.bind(T.Cast("int32", block % across) * tile.cols)
        begin, end = part_of(all_steps, T.Cast("int32", part), T.Cast("int32", parts))

        def source(step, r):
            """The voxel that a place meets at a step, or -1."""
            place = T.max(T.min(first_place + r, count - 1), 0)
            T.buffer_store(at, place // own_places[2], [0])
            T.buffer_store(at, place - at[0] * own_places[2], [2])
            T.buffer_store(at, at[0] // own_places[1], [3])
            T.buffer_store(at, at[0] - at[3] * own_places[1], [1])
            T.buffer_store(at, at[3], [0])
            inside, voxel = first_place + r < count, T.int32(0)
            for axis in range(3):
                T.buffer_store(at, met(axis, step, at[axis], own_size[axis]), [axis])
                if bounded:
                    inside = T.And(inside, T.And(at[axis] >= 0, at[axis] < own_size[axis]))
                voxel = voxel * own_size[axis] + at[axis]
            return T.if_then_else(inside, voxel, -1)

        own_steps = Steps(T.bind(begin), T.bind(end), lambda i: i, source)
        of_x = Operand(x, lambda row, c: [T.min(b, T.max(batch - 1, T.int64(0))), T.Cast("int64", row), c])
        of_weight = Operand(weight, lambda step, column, c: [first_column + column, step, c])
        columns = all_columns - first_column
        gemm.multiply(shared, sums, thread, own_steps, of_x, of_weight, columns, True)

        def store(r, column, values):
            with T.If(first_place + r < count), T.Then():
                row = T.bind(b * all_places + T.Cast("int64", first_place + r))
                finish_part(sums_of_parts, part, parts, epilogue, values, row, first_column + column, columns - column, False)

        def again(*at):
            return gemm.again(own_steps, of_x, of_weight, *at)

        gemm.finish(shared, sums, thread, again, store, columns, along_rows=True)
    add_parts(sums_of_parts, parts, batch * all_places, all_columns, epilogue)
