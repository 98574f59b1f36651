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
from .caches import L1
from .guards import check_size
from .isa import Isa, kernel_name
from .register_tile import RegisterTile

VOXELS = 128  # of one task, whole panels: each block of weights is fetched once for all of them
CHANNELS = 512  # of one task, about: enough to pay for packing the voxels
SLICE = 128  # channels, about, that take turns on a panel: one block of their weights stays in the L2 cache
PANEL_BYTES = 5 * L1 // 8  # the terms of one panel of voxels


def blocking(cin: int, taps: int, isa: Isa, dtype: str) -> tuple[RegisterTile, int]:
    """The register tile over one block of the cin * taps terms of a sum, and the number of blocks."""
    micro = RegisterTile(isa, 2, VOXELS, dtype)
    longest = PANEL_BYTES // (4 * micro.tile.cols) * (2 if micro.dot else 1)
    assert VOXELS % micro.tile.cols == 0, "a task is whole panels"
    terms = max(1, cin * taps)  # without channels, one that is zero: the bias is due all the same
    blocks = -(-terms // longest)
    depth = -(-terms // blocks)
    return RegisterTile(isa, depth + depth % 2, VOXELS, dtype), blocks


def shared(spec: Conv3d, isa: Isa) -> Conv3d:
    """One kernel serves all sizes."""
    return replace(spec, size_out=(None, None, None))


def weight_layout(spec: Conv3d, isa: Isa) -> WeightLayout:
    """[blocks * Cout, depth]: one block of all sums after another, zero past the last term.

    bfloat16 where activations are and the CPU has the dot instruction, else float32.
    """
    micro, blocks = blocking(spec.cin, spec.geometry.taps, isa, spec.dtype)
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
    micro, blocks = blocking(cin, taps, isa, dtype)
    terms, depth, steps = cin * taps, micro.depth, micro.steps
    cols, lanes, vectors = micro.tile.cols, micro.tile.lanes, micro.tile.vectors
    # Tiles as even as can be, one row more in the first `higher` of them: a low remainder would leave the FMA units waiting.
    tiles = -(-cout // micro.tile.rows)
    height, higher = divmod(cout, tiles)
    chunks = -(-cout // CHANNELS)
    chunk_tiles = -(-tiles // chunks)
    chunks = -(-tiles // chunk_tiles)
    slice_tiles = max(1, SLICE // micro.tile.rows)
    chunk_rows = chunk_tiles * (height + (higher > 0))
    pad_d, pad_h, pad_w = geometry.padding
    stride_d, stride_h, stride_w = geometry.stride
    _, kernel_h, kernel_w = geometry.kernel
    stored = "uint16" if micro.dot else dtype  # how x is read: TVM does not vectorize what makes integers of bfloat16
    act = EMIT[spec.activation]

    def first_row(tile):
        """The output channel at which a tile begins."""
        return tile * height + T.min(tile, T.int64(higher))

    @inline
    def pad(x, padded, batch, size, padded_size):
        """padded[b, c, d, h, w] = x[b, c, d - pad_d, h - pad_h, w - pad_w], zero outside"""
        for slab in T.parallel(batch * cin * padded_size[0]):
            plane: T.let = slab // padded_size[0]
            d: T.let = slab % padded_size[0] - pad_d
            for i in range(padded_size[1]):
                h: T.let = i - pad_h
                row: T.let = (slab * padded_size[1] + i) * padded_size[2]
                inside: T.let = T.And(T.And(d >= 0, d < size[0]), T.And(h >= 0, h < size[1]))
                if inside:
                    for w in range(pad_w):
                        padded[row + w] = T.Cast(stored, 0)
                    for w in range(size[2]):
                        padded[row + pad_w + w] = x[((plane * size[0] + d) * size[1] + h) * size[2] + w]
                    for w in range(pad_w):
                        padded[row + pad_w + size[2] + w] = T.Cast(stored, 0)
                else:
                    for w in range(padded_size[2]):
                        padded[row + w] = T.Cast(stored, 0)

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
    def find_voxels(place, block, voxels, size, out_size):
        """place[p] = where the first term of voxel p lies, for a block of them; past the last voxel, as that one"""
        at = T.alloc_buffer((3,), "int64")
        at[0] = block * VOXELS // (out_size[1] * out_size[2])
        at[1] = block * VOXELS // out_size[2] % out_size[1]
        at[2] = block * VOXELS % out_size[2]
        for i in range(VOXELS):
            place[block * VOXELS + i] = (at[0] * stride_d * size[1] + at[1] * stride_h) * size[2] + at[2] * stride_w
            if block * VOXELS + i + 1 < voxels:
                at[2] += 1
                if at[2] == out_size[2]:
                    at[2] = 0
                    at[1] += 1
                    if at[1] == out_size[1]:
                        at[1] = 0
                        at[0] += 1

    def term(x, where, first, step, place):
        """One step's part of a sum at a place, as `micro` reads it: a float32, or a pair of bfloat16."""
        if micro.dot:
            low, high = (T.Cast("int32", x[where[first + 2 * step + half] + place]) for half in range(2))
            return low | (high << 16)
        return T.Cast("float32", x[where[first + step] + place])

    @inline
    def pack(x, base, where, first_term, place, first, panel, count, packed):
        """packed[0, panel, step, lane] = the terms from `first_term` on of a panel's voxels; zero past the last term"""
        here: T.let = T.min(T.int64(depth), terms - first_term)
        whole: T.let = here // 2 if micro.dot else here
        for v in range(vectors):
            voxel: T.let = panel * cols + v * lanes
            start: T.let = base + place[first + voxel]
            if T.And(voxel + lanes <= count, place[first + voxel + lanes - 1] - place[first + voxel] == lanes - 1):
                for step in range(whole):  # places ascend: these voxels follow each other
                    for lane in T.vectorized(lanes):
                        packed[0, panel, step, v * lanes + lane] = term(x, where, first_term, step, start + lane)
            else:
                for step in range(whole):
                    for lane in T.unroll(lanes):
                        packed[0, panel, step, v * lanes + lane] = term(
                            x, where, first_term, step, base + place[first + voxel + lane]
                        )
        if micro.dot and terms % 2 > 0:
            if here % 2 > 0:
                for lane in range(cols):
                    packed[0, panel, whole, lane] = T.Cast(
                        "int32", x[base + where[first_term + here - 1] + place[first + panel * cols + lane]]
                    )
        filled: T.let = (here + 1) // 2 if micro.dot else here
        for step in range(steps - filled):
            for lane in T.vectorized(cols):
                packed[0, panel, filled + step, lane] = T.Cast(micro.weight_dtype, 0)

    @inline
    def add_product(rows, row, block, channel, panel, weight, packed, sums):
        """sums[row : row + rows, panel] += weight @ packed over one block of the terms"""
        acc = micro.accumulators(rows, cols)
        source = T.alloc_buffer((rows,), "int64")
        for r in T.unroll(rows):
            source[r] = block * cout + channel + row + r
        acc.load(lambda r, voxel: sums[row + r, panel * cols + voxel])
        micro.multiply(acc, weight, source, packed, 0, panel)
        acc.store(lambda value, r, voxel: T.buffer_store(sums, value, [row + r, panel * cols + voxel]))

    @inline
    def convolve_block(o, base, b, first, count, first_tile, num_tiles):
        sums = T.alloc_buffer((chunk_rows, VOXELS), "float32")  # [channels, voxels] of the task
        packed = T.alloc_buffer((1, VOXELS // cols, steps, cols), micro.weight_dtype)
        channel: T.let = first_row(first_tile)
        channels: T.let = first_row(first_tile + num_tiles) - channel
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
                pack(o.x, base, o.where, block * depth, o.place, first, panel, count, packed)
            for part in range((num_tiles + slice_tiles - 1) // slice_tiles):
                for panel in range(panels):
                    for t in range(T.min(T.int64(slice_tiles), num_tiles - part * slice_tiles)):
                        tile: T.let = first_tile + part * slice_tiles + t
                        row: T.let = first_row(tile) - channel
                        if higher > 0:
                            if tile < higher:
                                add_product(height + 1, row, block, channel, panel, o.weight, packed, sums)
                            else:
                                add_product(height, row, block, channel, panel, o.weight, packed, sums)
                        else:
                            add_product(height, row, block, channel, panel, o.weight, packed, sums)
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
            num_tiles: T.let = T.min(T.int64(chunk_tiles), tiles - first_tile)
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
        flat = T.decl_buffer((elements,), stored, data=x.data)
        flat_residual = T.decl_buffer(flat_shape, dtype, data=(residual if has_residual else out).data)
        flat_out = T.decl_buffer(flat_shape, dtype, data=out.data)
        if any(geometry.padding):
            padded = T.alloc_buffer((elements_padded,), stored)
            pad(flat, padded, batch, size, size_padded)
            convolve(padded, weight, bias, flat_residual, flat_out, batch, size_padded, size_out)
        else:
            convolve(flat, weight, bias, flat_residual, flat_out, batch, size, size_out)

    return kernel if has_residual else drop_parameters(kernel, "residual")
