"""What convolutions of dense grids share: vector lanes are voxels, and the terms of a panel of them are copied side by side.

A term of a sum is a channel and a tap. Where it lies in x is the sum of two distances: `where` of the term, and `place` of the
voxel, so that a kernel looks both up. The macros are made for a register tile.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from ..script import inline
from .caches import L1
from .isa import Isa
from .register_tile import RegisterTile

VOXELS = 128  # of one task, whole panels: each block of weights is fetched once for all of them
CHANNELS = 512  # of one task, about: enough to pay for packing the voxels
SLICE = 128  # channels, about, that take turns on a panel: one block of their weights stays in the L2 cache
PANEL_BYTES = 5 * L1 // 8  # the terms of one panel of voxels


def blocking(terms: int, isa: Isa, dtype: str) -> tuple[RegisterTile, int]:
    """The register tile over one block of the terms of a sum, and the number of blocks."""
    micro = RegisterTile(isa, 2, VOXELS, dtype)
    longest = PANEL_BYTES // (4 * micro.tile.cols) * (2 if micro.dot else 1)
    assert VOXELS % micro.tile.cols == 0, "a task is whole panels"
    terms = max(1, terms)  # without channels, one that is zero: the bias is due all the same
    blocks = -(-terms // longest)
    depth = -(-terms // blocks)
    return RegisterTile(isa, depth + depth % 2, VOXELS, dtype), blocks


@dataclass(frozen=True)
class ChannelTiles:
    """Output channels in register tiles of at most `most` rows, as even as can be: a low remainder would leave the FMA units
    waiting. The first `higher` tiles have one row more than `height`."""

    channels: int
    most: int

    @property
    def count(self) -> int:
        return -(-self.channels // self.most)

    @property
    def height(self) -> int:
        return self.channels // self.count

    @property
    def higher(self) -> int:
        return self.channels % self.count

    @property
    def highest(self) -> int:
        """Rows of the first tile."""
        return self.height + (self.higher > 0)

    def first(self, tile):
        """The output channel at which a tile begins."""
        return tile * self.height + T.min(tile, T.int64(self.higher))

    def with_height(self, tile, body: Callable) -> None:
        """Emit body(rows of a tile)."""
        if self.higher:
            with T.If(tile < self.higher):
                with T.Then():
                    body(self.height + 1)
                with T.Else():
                    body(self.height)
        else:
            body(self.height)


def filling(before: tuple[int, ...], after: tuple[int, ...], dtype: str) -> Callable:
    """The macro that pads planes of x by zeros, as many `before` and `after` along each axis."""
    (first_d, first_h, first_w), (_, _, last_w) = before, after

    @inline
    def fill(x, padded, planes, size, padded_size):
        """padded[plane, d, h, w] = x[plane, d - first_d, h - first_h, w - first_w], zero outside"""
        for slab in T.parallel(planes * padded_size[0]):
            plane: T.let = slab // padded_size[0]
            d: T.let = slab % padded_size[0] - first_d
            for i in range(padded_size[1]):
                h: T.let = i - first_h
                row: T.let = (slab * padded_size[1] + i) * padded_size[2]
                inside: T.let = T.And(T.And(d >= 0, d < size[0]), T.And(h >= 0, h < size[1]))
                if inside:
                    for w in range(first_w):
                        padded[row + w] = T.Cast(dtype, 0)
                    for w in range(size[2]):
                        padded[row + first_w + w] = x[((plane * size[0] + d) * size[1] + h) * size[2] + w]
                    for w in range(last_w):
                        padded[row + first_w + size[2] + w] = T.Cast(dtype, 0)
                else:
                    for w in range(padded_size[2]):
                        padded[row + w] = T.Cast(dtype, 0)

    return fill


def replicating(around: tuple[int, ...]) -> Callable:
    """The macro that pads planes of x by their edges, as many voxels `around` them on both sides along each axis."""
    pad_d, pad_h, pad_w = around

    @inline
    def replicate(x, padded, planes, size, padded_size):
        """padded[plane, d, h, w] = x[plane, d - pad_d, h - pad_h, w - pad_w], outside that of the nearest voxel"""
        for slab in T.parallel(planes * padded_size[0]):
            plane: T.let = slab // padded_size[0]
            d: T.let = T.max(T.min(slab % padded_size[0] - pad_d, size[0] - 1), T.int64(0))
            for i in range(padded_size[1]):
                h: T.let = T.max(T.min(i - pad_h, size[1] - 1), T.int64(0))
                row: T.let = (slab * padded_size[1] + i) * padded_size[2]
                source: T.let = ((plane * size[0] + d) * size[1] + h) * size[2]
                for w in range(pad_w):
                    padded[row + w] = x[source]
                for w in range(size[2]):
                    padded[row + pad_w + w] = x[source + w]
                for w in range(pad_w):
                    padded[row + pad_w + size[2] + w] = x[source + size[2] - 1]

    return replicate


def placing(stride: tuple[int, ...]) -> Callable:
    """The macro that finds the places of voxels, which lie `stride` apart along each axis."""
    stride_d, stride_h, stride_w = stride

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

    return find_voxels


def packing(micro: RegisterTile, odd: bool) -> Callable:
    """The macro that copies the terms of a panel, as `micro` reads them. `odd`: whether their number may be."""
    depth, steps = micro.depth, micro.steps
    cols, lanes, vectors = micro.tile.cols, micro.tile.lanes, micro.tile.vectors

    def term(x, where, first, step, place):
        """One step's part of a sum at a place, as `micro` reads it: a float32, or a pair of bfloat16."""
        if micro.dot:
            low, high = (T.Cast("int32", x[where[first + 2 * step + half] + place]) for half in range(2))
            return low | (high << 16)
        return T.Cast("float32", x[where[first + step] + place])

    @inline
    def pack(x, base, where, first_term, terms, place, first, panel, count, packed):
        """packed[0, panel, step, lane] = `terms` terms at most from `first_term` on of a panel's voxels; zero past the last"""
        here: T.let = T.min(T.int64(depth), terms)
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
        if micro.dot and odd:
            if here % 2 > 0:
                for lane in range(cols):
                    packed[0, panel, whole, lane] = T.Cast(
                        "int32", x[base + where[first_term + here - 1] + place[first + panel * cols + lane]]
                    )
        filled: T.let = (here + 1) // 2 if micro.dot else here
        for step in range(steps - filled):
            for lane in T.vectorized(cols):
                packed[0, panel, filled + step, lane] = T.Cast(micro.weight_dtype, 0)

    return pack


def adding(micro: RegisterTile) -> Callable:
    """The macro that multiplies a panel by rows of the weight."""
    cols = micro.tile.cols

    @inline
    def add_product(rows, row, weight_row, panel, weight, packed, sums):
        """sums[row : row + rows, panel] += weight[weight_row : weight_row + rows] @ packed over one block of the terms"""
        acc = micro.accumulators(rows, cols)
        source = T.alloc_buffer((rows,), "int64")
        for r in T.unroll(rows):
            source[r] = weight_row + r
        acc.load(lambda r, voxel: sums[row + r, panel * cols + voxel])
        micro.multiply(acc, weight, source, packed, 0, panel)
        acc.store(lambda value, r, voxel: T.buffer_store(sums, value, [row + r, panel * cols + voxel]))

    return add_product
