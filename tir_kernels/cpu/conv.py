"""Dense convolution in three dimensions as an implicit matrix product.

The product is transposed: vector lanes are output voxels p, in their order in memory, and the scalars are weights. So the
layout of torch, channels before voxels, is read and written as it is, and the sum runs over (c, t) as the weight lies: few
channels with many taps fill the register tile as well as many with one.

A task is a block of voxels and a range of output channels. It takes the sum in blocks; of each it copies the terms of one
panel of voxels next to each other, which then stay in the L1 cache while the weights of all channels pass over them. Sums
wait in float32 scratch for the next block: bias and residual first, then the terms in order. Blocks do not depend on threads,
so the bits do not either.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import prod

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..layout import WeightLayout
from ..script import drop_parameters, inline
from ..spec.conv3d import Conv3d
from ..vector_math import EMIT
from .guards import check_edges, check_size
from .isa import Isa, kernel_name
from .panels import CHANNELS, SLICE, VOXELS, ChannelTiles, adding, blocking, filling, packing, placing, replicating


def shared(spec: Conv3d, isa: Isa) -> Conv3d:
    """One kernel serves all sizes."""
    return replace(spec, size_out=(None, None, None))


def weight_layout(spec: Conv3d, isa: Isa) -> WeightLayout:
    """[blocks * Cout, depth]: one block of all sums after another, zero past the last term.

    bfloat16 where activations are and the CPU has the dot instruction, else float32.
    """
    micro, blocks = blocking(spec.cin * spec.geometry.taps, isa, spec.dtype)
    shape, dtype = (blocks * spec.cout, micro.depth), "bfloat16" if micro.dot else "float32"
    weight_shape = (spec.cout, spec.cin, *spec.geometry.kernel)

    def unpack(packed):
        rows = packed.astype("float32").reshape(blocks, spec.cout, micro.depth).transpose(1, 0, 2)
        rows = rows.reshape(spec.cout, blocks * micro.depth)
        return rows[:, : prod(weight_shape[1:])].reshape(weight_shape)

    return WeightLayout(shape, dtype, pack_filters(weight_shape, *shape, spec.dtype, dtype), unpack)


@cache
def pack_filters(shape: tuple[int, ...], rows: int, depth: int, dtype: str, packed_dtype: str) -> tvm.tirx.PrimFunc:
    """PrimFunc (weight `dtype` [Cout, Cin, kd, kh, kw], packed `packed_dtype` [rows, depth]), see `weight_layout`."""
    cout, terms = shape[0], prod(shape[1:])

    @script.prim_func(s_tir=True)
    def kernel(weight_: T.handle, packed: T.Buffer((rows, depth), packed_dtype)):
        T.func_attr({"tirx.noalias": True, "global_symbol": "pack_filters"})
        weight = match_buffer(weight_, shape, dtype)
        flat = T.decl_buffer((cout, terms), dtype, data=weight.data)
        for row in T.parallel(rows):
            for i in range(depth):
                packed[row, i] = T.if_then_else(
                    row // cout * depth + i < terms,
                    T.Cast(packed_dtype, flat[row % cout, row // cout * depth + i]),
                    T.Cast(packed_dtype, T.float32(0)),
                )

    return kernel


@dataclass(frozen=True)
class Operands:
    """The buffers of a convolution; a residual that it lacks is never read."""

    x: tvm.tirx.Buffer  # [elements], padded
    where: tvm.tirx.Buffer  # [Cin * taps]: the distance of a term from the first one
    place: tvm.tirx.Buffer  # [voxels]: where their first terms lie
    weight: tvm.tirx.Buffer  # [blocks * Cout, depth]
    bias: tvm.tirx.Buffer  # [Cout]
    residual: tvm.tirx.Buffer  # [B, Cout, voxels]
    out: tvm.tirx.Buffer  # [B, Cout, voxels]


@cache
def conv3d(spec: Conv3d, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Conv3d`."""
    cin, cout, geometry, dtype, has_residual = spec.cin, spec.cout, spec.geometry, spec.dtype, spec.has_residual
    taps = geometry.taps
    micro, blocks = blocking(cin * taps, isa, dtype)
    terms, depth, cols = cin * taps, micro.depth, micro.tile.cols
    tiles = ChannelTiles(cout, micro.tile.rows)
    chunks = -(-cout // CHANNELS)
    chunk_tiles = -(-tiles.count // chunks)
    chunks = -(-tiles.count // chunk_tiles)
    slice_tiles = max(1, SLICE // micro.tile.rows)
    chunk_rows = chunk_tiles * tiles.highest
    _, kernel_h, kernel_w = geometry.kernel
    stored = "uint16" if micro.dot else dtype  # how x is read: TVM does not vectorize what makes integers of bfloat16
    act = EMIT[spec.activation]
    pad = replicating(geometry.padding) if spec.edges else filling(geometry.padding, geometry.padding, stored)
    find_voxels, pack, add_product = placing(geometry.stride), packing(micro, terms % 2 > 0), adding(micro)

    @inline
    def find_terms(where, size):
        """where[i] = the distance of term i = (channel, tap) of a sum from the first one"""
        for c in range(cin):
            for tap in range(taps):
                d: T.let = T.Cast("int64", tap // (kernel_h * kernel_w) * geometry.dilation[0])
                h: T.let = T.Cast("int64", tap // kernel_w % kernel_h * geometry.dilation[1])
                w: T.let = T.Cast("int64", tap % kernel_w * geometry.dilation[2])
                where[c * taps + tap] = ((T.Cast("int64", c) * size[0] + d) * size[1] + h) * size[2] + w

    @inline
    def convolve_block(o, base, b, first, count, first_tile, num_tiles):
        sums = T.alloc_buffer((chunk_rows, VOXELS), "float32")  # [channels, voxels] of the task
        packed = T.alloc_buffer((1, VOXELS // cols, micro.steps, cols), micro.weight_dtype)
        channel: T.let = tiles.first(first_tile)
        channels: T.let = tiles.first(first_tile + num_tiles) - channel
        for r in range(channels):
            for i in range(count):
                sums[r, i] = (
                    o.bias[channel + r] + T.Cast("float32", o.residual[b, channel + r, first + i])
                    if has_residual
                    else o.bias[channel + r]
                )
        panels: T.let = (count + cols - 1) // cols
        for block in range(T.int64(blocks)):
            for panel in range(panels):
                pack(o.x, base, o.where, block * depth, terms - block * depth, o.place, first, panel, count, packed)
            for part in range((num_tiles + slice_tiles - 1) // slice_tiles):
                for panel in range(panels):
                    for t in range(T.min(T.int64(slice_tiles), num_tiles - part * slice_tiles)):
                        tile: T.let = first_tile + part * slice_tiles + t
                        row: T.let = tiles.first(tile) - channel
                        tiles.with_height(
                            tile,
                            lambda rows: add_product(rows, row, block * cout + channel + row, panel, o.weight, packed, sums),
                        )
        for r in range(channels):
            for i in range(count):
                o.out[b, channel + r, first + i] = T.Cast(dtype, act(sums[r, i]))

    @inline
    def convolve(x, weight, bias, residual, out, batch, size, out_size):
        if micro.llvm_ir is not None:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
        voxels: T.let = out_size[0] * out_size[1] * out_size[2]
        voxel_blocks: T.let = (voxels + VOXELS - 1) // VOXELS
        where = T.alloc_buffer((T.int64(terms),), "int64")  # [Cin * taps]
        # [voxels, rounded up]; one for all tasks, as TVM would let the register tile share the memory of one that ends early
        place = T.alloc_buffer((voxel_blocks * VOXELS,), "int64")
        find_terms(where, size)
        for block in T.parallel(voxel_blocks):
            find_voxels(place, block, voxels, size, out_size)
        for task in T.parallel(chunks * batch * voxel_blocks):
            first_tile: T.let = task // (batch * voxel_blocks) * chunk_tiles
            b: T.let = task // voxel_blocks % batch
            first: T.let = task % voxel_blocks * VOXELS
            count: T.let = T.min(T.int64(VOXELS), voxels - first)
            base: T.let = b * cin * size[0] * size[1] * size[2]
            num_tiles: T.let = T.min(T.int64(chunk_tiles), tiles.count - first_tile)
            convolve_block(Operands(x, where, place, weight, bias, residual, out), base, b, first, count, first_tile, num_tiles)

    batch = tvm.tirx.Var("batch", "int64")
    size, size_out = ([tvm.tirx.Var(f"{name}{axis}", "int64") for axis in "dhw"] for name in ("", "out_"))
    size_padded = [n + 2 * pad for n, pad in zip(size, geometry.padding, strict=True)]
    elements, elements_padded = (batch * cin * d * h * w for d, h, w in (size, size_padded))
    flat_shape = (batch, cout, size_out[0] * size_out[1] * size_out[2])

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, residual_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("conv3d", dtype, isa, micro.tile)})
        x = match_buffer(x_, (batch, cin, *size), dtype)
        weight = match_buffer(weight_, (blocks * cout, depth), "bfloat16" if micro.dot else "float32")
        bias = match_buffer(bias_, (cout,), "float32")
        out = match_buffer(out_, (batch, cout, *size_out), dtype)
        residual = match_buffer(residual_, (batch, cout, *size_out), dtype)
        check_size(size_padded, geometry)
        check_edges(size, spec.edges)
        flat = T.decl_buffer((elements,), stored, data=x.data)
        flat_residual = T.decl_buffer(flat_shape, dtype, data=(residual if has_residual else out).data)
        flat_out = T.decl_buffer(flat_shape, dtype, data=out.data)
        if any(geometry.padding):
            padded = T.alloc_buffer((elements_padded,), stored)
            pad(flat, padded, batch * cin, size, size_padded)
            convolve(padded, weight, bias, flat_residual, flat_out, batch, size_padded, size_out)
        else:
            convolve(flat, weight, bias, flat_residual, flat_out, batch, size, size_out)

    return kernel if has_residual else drop_parameters(kernel, "residual")
