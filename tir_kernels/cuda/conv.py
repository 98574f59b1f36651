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
from .dense_products import MOST_VOXELS, channels_last, multiply
from .epilogue import Epilogue
from .gpu import Gpu, kernel_name, stating
from .tensor_core import Gemm, tile_for
from .vectors import width


@cache
def conv3d(spec: Conv3d, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Conv3d`."""
    cin, cout, geometry, dtype, has_residual = spec.cin, spec.cout, spec.geometry, spec.dtype, spec.has_residual
    taps, (_, kernel_h, kernel_w) = geometry.taps, geometry.kernel
    vector = width(dtype)
    channels = -(-cin // vector) * vector
    gemm = Gemm(tile_for(cout, dtype), dtype, channels, spec.products)
    tile = gemm.tile

    def met(axis, tap, place, size):
        """The voxel of a tap of an output voxel along an axis."""
        step = (tap // (kernel_h * kernel_w), tap // kernel_w % kernel_h, tap % kernel_w)[axis]
        voxel = place * geometry.stride[axis] + step * geometry.dilation[axis] - geometry.padding[axis]
        return T.max(T.min(voxel, size - 1), 0) if axis + 2 in spec.edges else voxel

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
        multiply(gemm, own, own_weight, batch, size, size_out, taps, met, epilogue, bounded=not spec.edges)

    return stating(kernel if has_residual else drop_parameters(kernel, "residual"), tile.registers)
