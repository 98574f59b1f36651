"""Sparse convolution of few channels a group: depthwise, with any multiplier, and several narrow groups side by side.

A group is too narrow for a register tile of pairs, and there is too little to multiply to load and store sums for every pair.
So the pairs of a block of output rows, which a map holds tap by tap, are sorted by output row first. Each row then keeps the
sums of a panel of channels in registers over all of its pairs, in the order of their taps, and is written once, with bias,
residual and activation. What is left is reading rows: from the cache, as neighbouring rows have neighbours in common.

A vector holds `lanes` input channels, and so several whole groups. Where groups have more than one input channel, product c
of an output channel is with channel c of its group: the vector with its lanes exchanged within groups. Where a group has
`times` as many output channels as input channels, each vector of input channels has that many vectors of sums. Input channels
that fill no vector are in one that begins earlier: its sums are made twice and are the same.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..layout import WeightLayout
from ..script import drop_parameters, inline
from ..spec.sparse_conv import SparseConv
from ..vector_math import EMIT
from .gather_gemm import Operands
from .guards import check_map
from .isa import Isa, Tile, kernel_name
from .register_tile import Accumulators


def refuses(spec: SparseConv, isa: Isa) -> str | None:
    """Why register tiles of pairs serve better."""
    depth, width = spec.group_cin, spec.group_cout
    if spec.groups == 1:
        return "groups: expected more than 1, given 1"
    if depth == 1 and (width < isa.lanes or spec.cin >= isa.lanes):
        return None
    if 0 < depth <= width < isa.lanes and isa.lanes % depth == 0 and width % depth == 0:
        return None
    return (
        f"groups: expected groups of 1 input channel, or narrow ones that divide {isa.lanes} lanes, "
        f"given {spec.groups} of {depth} to {width} channels"
    )


def shared(spec: SparseConv, isa: Isa) -> SparseConv:
    """One kernel serves kernels of all sizes."""
    return replace(spec, kernel=(1, 1, 1), products="float")


class Panels:
    """How channels are cut: `lanes` input channels to a vector, `vectors` of them to a panel, `chunk` vectors of sums to each.

    Panels are counted over the input channels first, `across` of them, then over `chunks` of a group's output channels. The
    sums of one panel fill at most half of the registers.
    """

    def __init__(self, spec: SparseConv, isa: Isa):
        self.cin, self.depth, self.width = spec.cin, spec.group_cin, spec.group_cout
        self.times = self.width // self.depth
        self.lanes = min(isa.lanes, 1 << (self.cin.bit_length() - 1))
        sums = 12 if isa.registers == 32 else 8  # the rest are rows, weights where they need a register, and room
        self.chunks = -(-self.times // sums)
        self.chunk = -(-self.times // self.chunks)
        count = -(-self.cin // self.lanes)
        self.across = -(-count // (sums // self.chunk))
        self.vectors = -(-count // self.across)
        self.last_vectors = count - (self.across - 1) * self.vectors
        self.tile = Tile(self.vectors * self.chunk, self.lanes, self.lanes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a packed weight beside its taps: panels, products of a tap in one panel, lanes."""
        return self.across * self.chunks, self.vectors * self.chunk * self.depth, self.lanes

    def first_channel(self, vector):
        """The input channel that a vector begins with: an int or a TIR expression."""
        last = self.cin - self.lanes
        return min(vector * self.lanes, last) if isinstance(vector, int) else T.min(vector * self.lanes, last)

    def out_channel(self, channel, time):
        """The output channel of sum `time` in the lane of an input channel."""
        if self.times == 1:
            return channel
        return channel // self.depth * self.width + time * self.depth + channel % self.depth


@cache
def weight_layout(spec: SparseConv, isa: Isa) -> WeightLayout:
    """float32 [panels, taps, products, lanes], products ordered by vector, sum and channel of a group; zero where none is."""
    cut = Panels(spec, isa)
    taps = int(np.prod(spec.kernel))
    panels, products, lanes = cut.shape
    dtype, depth, chunk, across = spec.dtype, cut.depth, cut.chunk, cut.across

    def unpack(packed: np.ndarray) -> np.ndarray:
        weight = np.zeros((spec.cout, taps, depth), "float32")
        panel, product, lane = np.indices((panels, products, lanes))
        vector, time = (
            panel % across * cut.vectors + product // (chunk * depth),
            panel // across * chunk + product // depth % chunk,
        )
        real = (vector < -(-cut.cin // lanes)) & (time < cut.times)
        channel = np.minimum(vector * lanes, cut.cin - lanes) + lane
        out = cut.out_channel(channel, time)[real]
        weight[out, :, (product % depth)[real]] = packed.transpose(0, 2, 3, 1)[real]
        return weight.reshape(spec.cout, *spec.kernel, depth)

    @script.prim_func(s_tir=True)
    def kernel(weight_: T.handle, packed_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "pack_depthwise_weight"})
        kx, ky, kz = T.int64(), T.int64(), T.int64()
        weight = match_buffer(weight_, (spec.cout, kx, ky, kz, depth), dtype)
        packed = match_buffer(packed_, (panels, kx * ky * kz, products, lanes), "float32")
        flat = T.decl_buffer((spec.cout, kx * ky * kz, depth), dtype, data=weight.data)
        for panel in T.parallel(panels):
            for tap in range(kx * ky * kz):
                for product, lane in T.grid(products, lanes):
                    vector: T.let = panel % across * cut.vectors + product // (chunk * depth)
                    time: T.let = panel // across * chunk + product // depth % chunk
                    channel: T.let = cut.first_channel(vector) + lane
                    packed[panel, tap, product, lane] = T.if_then_else(
                        T.And(vector * lanes < cut.cin, time < cut.times),
                        T.Cast("float32", flat[cut.out_channel(channel, time), tap, product % depth]),
                        T.float32(0),
                    )

    return WeightLayout((panels, taps, products, lanes), "float32", kernel, unpack)


@dataclass(frozen=True)
class Sorted:
    """The pairs of a block by output row: those of row r are from entry first[r] to before first[r + 1], ascending by tap."""

    first: tvm.tirx.Buffer  # [block rows + 2]
    pair: tvm.tirx.Buffer  # [slots] input row * 2^32 + tap: one load and store each


@cache
def depthwise_conv(spec: SparseConv, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SparseConv`."""
    cin, cout, dtype, has_residual = spec.cin, spec.cout, spec.dtype, spec.has_residual
    cut = Panels(spec, isa)
    (panels, products, lanes), depth = cut.shape, cut.depth
    act = EMIT[spec.activation]

    @inline
    def sort_pairs(o, block, rows, taps, by_row):
        """A counting sort: `first` counts, then tells where the next pair of a row goes, one place further on."""
        for row in range(rows + 2):
            by_row.first[row] = T.int32(0)
        for pair in range(T.Cast("int64", o.segment[block, taps])):
            by_row.first[T.Cast("int64", o.pair_out[block, pair]) + 2] += 1
        for row in range(rows):
            by_row.first[row + 2] += by_row.first[row + 1]
        for tap in range(taps):
            start: T.let = T.Cast("int64", o.segment[block, tap])
            for i in range(T.Cast("int64", o.segment[block, tap + 1]) - start):
                row: T.let = T.Cast("int64", o.pair_out[block, start + i]) + 1
                place: T.let = T.Cast("int64", by_row.first[row])
                by_row.pair[place] = T.Cast("int64", o.pair_in[block, start + i]) << 32 | tap
                by_row.first[row] = T.Cast("int32", place + 1)

    def add_pair(acc, x, own, source, tap, sums, channel_of):
        """Emit: the sums of a panel take in one pair, a vector of an input row at a time."""
        ramp = T.Ramp(0, 1, lanes)

        def features(vector):
            row = x[source, T.Ramp(channel_of(vector), 1, lanes)]
            return row if dtype == "float32" else T.Cast(f"float32x{lanes}", row)

        def exchanged(row, c):
            return row if depth == 1 else T.Shuffle([row], [lane // depth * depth + c for lane in range(lanes)])

        for first, rows, part in acc.parts:
            for i in range(rows):
                vector, time = divmod(first + i, sums)
                for c in range(depth):
                    product = (vector * cut.chunk + time) * depth + c
                    factor = exchanged(features(vector), c)
                    T.buffer_store(part, part[i, ramp] + factor * own[tap, product, ramp], [i, ramp])

    @inline
    def convolve_row(o, row, begin, end, by_row, own, vectors, sums, first_time, channel_of):
        acc = T.meta_var(Accumulators(vectors * sums, lanes, lanes))
        out_channel = T.meta_var(lambda i, lane: cut.out_channel(channel_of(i // sums) + lane, first_time + i % sums))
        acc.load(
            lambda i, lane: (
                o.bias[out_channel(i, lane)] + T.Cast("float32", o.residual[row, out_channel(i, lane)])
                if has_residual
                else o.bias[out_channel(i, lane)]
            )
        )
        for entry in range(begin, end):
            source: T.let = by_row.pair[entry] >> 32
            tap: T.let = by_row.pair[entry] & T.int64(0xFFFFFFFF)
            add_pair(acc, o.feats, own, source, tap, sums, channel_of)
        acc.store(lambda value, i, lane: T.buffer_store(o.out, T.Cast(dtype, act(value)), [row, out_channel(i, lane)]))

    @inline
    def convolve_panel(o, first_row, rows, taps, by_row, own, panel, vectors, sums, first_time, channel_of):
        # a weight may begin anywhere, and loads across cache lines cost twice as much: scratch begins at one
        for tap, product in T.grid(taps, products):
            for lane in T.vectorized(lanes):
                own[tap, product, lane] = o.weight[panel, tap, product, lane]
        for row in range(rows):
            begin: T.let = T.Cast("int64", by_row.first[row])
            end: T.let = T.Cast("int64", by_row.first[row + 1])
            convolve_row(o, first_row + row, begin, end, by_row, own, vectors, sums, first_time, channel_of)

    def over_panels(body):
        """Emit `body(panel, vectors, sums, first_time, channel_of)` for all panels; the last one across has code of its own."""
        for chunk in range(cut.chunks):
            first_time = chunk * cut.chunk
            sums = min(cut.chunk, cut.times - first_time)
            last = cut.across - 1
            if last > 0:
                with T.serial(0, last) as panel:
                    first = panel * (cut.vectors * lanes)
                    body(chunk * cut.across + panel, cut.vectors, sums, first_time, lambda v: first + v * lanes)
            rest = last * cut.vectors
            body(chunk * cut.across + last, cut.last_vectors, sums, first_time, lambda v: cut.first_channel(rest + v))

    @inline
    def convolve_block(o, block, first_row, rows, taps, by_row, own):
        sort_pairs(o, block, rows, taps, by_row)
        over_panels(lambda *panel: convolve_panel(o, first_row, rows, taps, by_row, own, *panel))

    @inline
    def convolve(o, num_out, blocks, taps, slots):
        for block in T.parallel(blocks):  # consecutive ones to a thread: they read the same rows, which stay in its L2 cache
            block_rows: T.let = slots // taps
            first_row: T.let = block * block_rows
            first = T.alloc_buffer((slots // taps + 2,), "int32")
            pair = T.alloc_buffer((slots,), "int64")
            own = T.alloc_buffer((taps, products, lanes), "float32")
            by_row = T.meta_var(Sorted(first, pair))
            convolve_block(o, block, first_row, T.min(block_rows, num_out - first_row), taps, by_row, own)

    @script.prim_func(s_tir=True)
    def kernel(
        feats_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        residual_: T.handle,
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("depthwise_conv", dtype, isa, cut.tile)})
        n, m, blocks, slots, taps, columns = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        feats = match_buffer(feats_, (n, cin), dtype)
        weight = match_buffer(weight_, (panels, taps, products, lanes), "float32")
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (m, cout), dtype)
        pair_in = match_buffer(pair_in_, (blocks, slots), "int32")
        pair_out = match_buffer(pair_out_, (blocks, slots), "int32")
        segment = match_buffer(segment_, (blocks, columns), "int32")
        out = match_buffer(out_, (m, cout), dtype)
        check_map(map_rows, n, m, columns - 1, taps)
        convolve(Operands(feats, weight, bias, residual, pair_in, pair_out, segment, out), m, blocks, taps, slots)

    return kernel if has_residual else drop_parameters(kernel, "residual")
