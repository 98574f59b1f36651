"""Dense transposed convolution as products on tensor cores, see `tensor_core` and `spec.conv_transpose3d`.

Rows of a product are the places of one group of phases, columns its phases and output channels; each group is a launch. As in
`conv`, x and the weight are copied first, so that the channels of a voxel, and of a step, lie side by side.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_OUTPUT_SIZE, RAISE_VOXELS
from ..script import drop_parameters
from ..spec.conv_transpose3d import ConvTranspose3d, Group, axes_of, groups_of, out_size
from .dense_products import MOST_VOXELS, channels_last, multiply
from .epilogue import Epilogue
from .gpu import Gpu, kernel_name, stating
from .launch import for_each, left_to_nvcc
from .tensor_core import Gemm, tile_for
from .vectors import width


def choose(index, numbers):
    """numbers[index], int32; arithmetic where the numbers ascend evenly. 0 of none: phases may have no tap."""
    if not numbers:
        return T.int32(0)
    first, step = numbers[0], numbers[1] - numbers[0] if len(numbers) > 1 else 0
    if all(number == first + i * step for i, number in enumerate(numbers)):
        return index * step + first
    chosen = T.int32(numbers[-1])
    for i in reversed(range(len(numbers) - 1)):
        chosen = T.Select(index == i, T.int32(numbers[i]), chosen)
    return chosen


@cache
def conv_transpose3d(spec: ConvTranspose3d, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `ConvTranspose3d`."""
    cin, cout, geometry, dtype, has_residual = spec.cin, spec.cout, spec.geometry, spec.dtype, spec.has_residual
    axes, taps, vector = axes_of(geometry), geometry.taps, width(dtype)
    groups = groups_of(geometry)
    channels = -(-cin // vector) * vector
    tile = tile_for(max(len(group.phases) for group in groups) * cout, dtype)
    gemm = Gemm(tile, dtype, channels, spec.products)

    def copy_weight(group: Group, weight, own):
        """Emit a launch: own[phase and output channel, step, channel] = weight, zeros for further channels."""
        steps, columns = len(group.steps), len(group.phases) * cout

        def copy(place):
            with left_to_nvcc():
                at = T.alloc_buffer((4,), "int32", scope="local")
                T.buffer_store(at, T.Cast("int32", place % channels), [0])
                T.buffer_store(at, T.Cast("int32", place // channels % steps), [1])
                T.buffer_store(at, T.Cast("int32", place // (channels * steps)), [2])
                T.buffer_store(at, choose(at[2] // cout * steps + at[1], [tap for row in group.taps for tap in row]), [3])
                zero = T.Cast(dtype, T.float32(0))
                value = T.if_then_else(at[0] < cin, weight[T.min(at[0], max(cin - 1, 0)), at[2] % cout, at[3]], zero)
                T.buffer_store(own, value if cin else zero, [at[2], at[1], at[0]])

        for_each(T.int64(columns * steps * channels), copy)

    def met(group: Group):
        """The voxel that a place of a group meets at a step along an axis."""
        return lambda axis, step, place, size: place + axes[axis].first - choose(step, [own[axis] for own in group.steps])

    def outputs(group: Group, places, size_out):
        """Of a row and a column: where the output is, [element of the batch, output channel, d, h, w]."""

        def along(axis, m, phase):
            of_phase = choose(phase, [own[axis] for own in group.phases])
            first = geometry.stride[axis] * axes[axis].first - geometry.padding[axis]
            return m * geometry.stride[axis] + T.Cast("int64", of_phase) + first

        def find(row, column):
            phase, least = column // cout, [T.max(n, T.int64(1)) for n in places]
            line = row // least[2]
            m = (line // least[1] % least[0], line % least[1], row % least[2])
            return [line // (least[0] * least[1]), column % cout, *(along(axis, m[axis], phase) for axis in range(3))]

        def there(row, column):
            inside = [T.And(at >= 0, at < n) for at, n in zip(find(row, column)[2:], size_out, strict=True)]
            return T.And(T.And(*inside[:2]), inside[2])

        def fits(k, s, pad, d, more, axis):
            """Whether every place has an output of every phase."""
            return s * axis.first == pad and s * axis.more + s - 1 <= d * (k - 1) + more - 2 * pad

        g = geometry
        exact = all(map(fits, g.kernel, g.stride, g.padding, g.dilation, g.output_padding, axes))
        return find, None if exact else there

    batch = tvm.tirx.Var("batch", "int64")
    size, size_out = ([tvm.tirx.Var(f"{name}{axis}", "int64") for axis in "dhw"] for name in ("", "out_"))
    places = [n + axis.more for n, axis in zip(size, axes, strict=True)]

    def check_size():
        """Emit, on the host, which knows sizes: raise for the first axis without a voxel, or without an output."""
        for axis, (n, outputs) in enumerate(zip(size, out_size(size, geometry), strict=True)):
            with T.If(T.Or(n < 1, outputs < 1)), T.Then():
                T.evaluate(T.call_packed(RAISE_OUTPUT_SIZE, axis + 2, n, T.if_then_else(n < 1, T.int64(0), outputs)))

    def convolve(x, weight, bias, residual, out):
        for group in groups:
            steps, columns = len(group.steps), len(group.phases) * cout
            flat_own = T.alloc_buffer((max(columns * steps * channels, 1),), dtype)
            own = T.decl_buffer((columns, max(steps, 1), max(channels, 1)), dtype, data=flat_own.data)
            if steps * channels:
                copy_weight(group, weight, own)
            at, there = outputs(group, places, size_out)
            channel = lambda column: column % cout
            epilogue = Epilogue(out, spec.activation, bias, residual, at=at, channel=channel, there=there)
            multiply(gemm, x, own, batch, size, places, steps, met(group), epilogue)

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, residual_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("conv_transpose3d", gemm.of, str(tile))})
        x = match_buffer(x_, (batch, cin, *size), dtype)
        weight = match_buffer(weight_, spec.weight_shape, dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        out = match_buffer(out_, (batch, cout, *size_out), dtype)
        residual = match_buffer(residual_, (batch, cout, *size_out), dtype)
        check_size()
        voxels: T.let = size[0] * size[1] * size[2]
        numbered: T.let = T.max(voxels, places[0] * places[1] * places[2])
        if numbered > MOST_VOXELS:
            T.call_packed(RAISE_VOXELS, numbered, T.int64(MOST_VOXELS))
        flat = T.decl_buffer((batch, cin, voxels), dtype, data=x.data)
        flat_weight = T.decl_buffer((cin, cout, taps), dtype, data=weight.data)
        # as flat scratch under another shape: TVM takes very long to find which part of a shape is touched
        flat_own = T.alloc_buffer((T.max(batch * voxels, T.int64(1)) * max(channels, 1),), dtype)
        own = T.decl_buffer((batch, voxels, max(channels, 1)), dtype, data=flat_own.data)
        channels_last(flat, own)
        convolve(own, flat_weight, bias, residual if has_residual else None, out)

    return stating(kernel if has_residual else drop_parameters(kernel, "residual"), tile.registers)
