"""Dense 3^3 convolution by Winograd's minimal filtering F(2, 3) along all three axes, and 1 x 3^2, of images, along two.

Two neighbouring outputs along an axis are A^T ((G g) * (B^T x)) of three weights g and four inputs x: four products where the
definition takes six (Lavin and Gray, arXiv:1509.09308). Nested three times, a tile of 2^3 outputs takes 4^3 products for a
pair of channels instead of 216, and the sum over channels becomes 64 matrix products, one for each place in a transformed tile:

    out[b, o, tile] = act(bias[o] + residual[b, o, tile] + A^T (sum over channels c of (G weight[o, c]) * (B^T x[b, c, patch])))

where G, B and A act along each axis and the patch of a tile is 4^3 voxels of the padded input. The transforms add and halve.
Along the last two axes alone a tile is 2^2 outputs of 4^2 voxels: 16 products for 36, and as many matrix products.

Vector lanes are tiles that follow each other along the last axis. A task is a block of tiles and a range of output channels,
and holds the transforms of one block of input channels at one place of the first axis, so that scratch is small for any
input: about 2 MiB for a thread, besides a padded copy of x. It transforms its weights itself, which its tiles pay for: weights
stored transformed would take 64 / 27 times the memory and save a tenth of the time.

Sums run over the channels in order, whatever the task, so that bits depend neither on threads nor on what else is in the
batch.
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
from ..spec.geometry import Geometry
from ..vector_math import EMIT
from . import caches
from .guards import check_edges, check_size
from .isa import Isa, kernel_name
from .register_tile import RegisterTile

KERNELS = ((3, 3, 3), (1, 3, 3))
VECTOR = 8  # tiles, or channels of weights, that are transformed at a time, whatever the vectors of the CPU
STEP = 8  # vectors of tiles that take turns on the weights: a whole number of panels; their transforms stay in the L2 cache
BLOCK = 16  # vectors of tiles of one task, twice as many of flat ones: they pay for transforming its weights
TASKS = 32  # with fewer than these, the blocks of flat tiles are half as large
CHANNELS = 128  # output channels of one task, about: they pay for transforming its tiles
PART = 66  # output channels, at most, whose products for a step stay in the L2 cache
DEPTH = 64  # input channels of a block, at most
LINE = caches.LINE // 4  # channels of weights that lie next to each other

# The rows of B^T, as x[a] + sign * x[b], and of G; the columns of A^T.
INPUT_ROWS = ((0, 2, -1.0), (1, 2, 1.0), (2, 1, -1.0), (1, 3, -1.0))
FILTER_ROWS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
OUTPUT_COLUMNS = ((1.0, 0.0), (1.0, 1.0), (1.0, -1.0), (0.0, -1.0))


def pays(cin: int, cout: int, size_out: tuple[int | None, ...], kernel: tuple[int, ...] = KERNELS[0]) -> bool:
    """Whether this takes less time than `conv.conv3d`, from channels and output size (D', H', W'), None where not known.

    With few channels the transforms take longer than the products; few voxels do not pay for transforming the weights; and of
    the voxels that vectors of tiles cover, at least half have to exist. An axis that is not known counts as long. The batch
    does not count, or the bits of an element might depend on it.
    """
    if min(cin, cout) < 16:
        return False
    steps = (tile_depth(kernel), 2, 2 * VECTOR)
    known = [(n, -(-n // step) * step) for n, step in zip(size_out, steps, strict=True) if n is not None]
    voxels, covered = (prod(numbers) for numbers in zip((1, 1), *known, strict=True))
    return covered <= 2 * voxels and (None in size_out or voxels >= 256)


def tile_depth(kernel: tuple[int, ...]) -> int:
    """Outputs of a tile along the first axis: two where that is transformed."""
    return 2 if kernel[0] == 3 else 1


def blocking(cin: int) -> tuple[int, int]:
    """Input channels of a block, a multiple of LINE, and the number of blocks."""
    blocks = -(-cin // DEPTH)
    return -(-cin // (blocks * LINE)) * LINE, blocks


def refuses(spec: Conv3d, isa: Isa) -> str | None:
    """Why a convolution does not go by this algorithm, or None."""
    if spec.dtype != "float32":
        return f"dtype: expected float32, given {spec.dtype}"
    kernel = spec.geometry.kernel
    if kernel not in KERNELS or spec.geometry != Geometry(kernel, padding=spec.geometry.padding):
        return f"geometry: expected a kernel of 3^3 or 1 x 3^2 with unit stride and dilation, given {spec.geometry}"
    if not pays(spec.cin, spec.cout, spec.size_out, kernel):
        return f"does not pay for {spec.cin} -> {spec.cout} channels and an output of {spec.size_out}"
    return None


def shared(spec: Conv3d, isa: Isa) -> Conv3d:
    """One kernel serves all sizes."""
    return replace(spec, size_out=(None, None, None))


def weight_layout(spec: Conv3d, isa: Isa) -> WeightLayout:
    """[Cout, blocks, taps, depth], zero past the last channel."""
    depth, blocks = blocking(spec.cin)
    kernel = spec.geometry.kernel

    def unpack(packed):
        channels = packed.transpose(0, 1, 3, 2).reshape(spec.cout, -1, *kernel)
        return channels[:, : spec.cin]

    pack = pack_filters(spec.cout, spec.cin, kernel)
    return WeightLayout((spec.cout, blocks, prod(kernel), depth), "float32", pack, unpack)


@cache
def pack_filters(cout: int, cin: int, kernel_size: tuple[int, ...]) -> tvm.tirx.PrimFunc:
    """PrimFunc (weight float32 [Cout, Cin, *kernel_size], packed), see `weight_layout`."""
    depth, blocks = blocking(cin)
    taps = prod(kernel_size)
    shape = (cout, blocks, taps, depth)

    @script.prim_func(s_tir=True)
    def kernel(weight_: T.handle, packed: T.Buffer(shape, "float32")):
        T.func_attr({"tirx.noalias": True, "global_symbol": "pack_winograd"})
        weight = match_buffer(weight_, (cout, cin, *kernel_size), "float32")
        flat = T.decl_buffer((cout, cin, taps), "float32", data=weight.data)
        for o in T.parallel(cout):
            for block, tap, c in T.grid(blocks, taps, depth):
                packed[o, block, tap, c] = T.if_then_else(
                    block * depth + c < cin, flat[o, T.min(block * depth + c, cin - 1), tap], T.float32(0)
                )

    return kernel


def input_transform(x0, x1, x2, x3):
    """B^T x"""
    return x0 - x2, x1 + x2, x2 - x1, x1 - x3


def filter_transform(g0, g1, g2):
    """G g"""
    half, ends = T.float32(0.5), g0 + g2
    return g0, (ends + g1) * half, (ends - g1) * half, g2


def output_transform(m0, m1, m2, m3):
    """A^T m"""
    return m0 + m1 + m2, m1 - m2 - m3


def along_both_axes(transform, square: list[list]) -> list:
    """What a transform makes of the rows, then of the columns of a square of expressions, row after row; all are bound."""
    for _ in range(2):
        transformed = [[T.bind(value) for value in transform(*row)] for row in square]
        square = [list(column) for column in zip(*transformed, strict=True)]
    return [value for row in square for value in row]


def choose(place, values):
    """values[place], for a place from 0 to 3."""
    chosen = values[3]
    for p in (2, 1, 0):
        chosen = T.Select(place == p, values[p], chosen)
    return chosen


def factor(place, values):
    """A vector of values[place]."""
    return T.Broadcast(choose(place, [T.float32(value) for value in values]), VECTOR)


def vector(first, vectors=1):
    """The index of `vectors` vectors of elements."""
    return T.Ramp(first, 1, vectors * VECTOR)


def transform_patches(place, voxel, store):
    """Emit store(i, B^T x) for the 4^2 places i behind one of the first axis; voxel(d, h, w): those of a vector of tiles.

    `place` is None where the first axis is not transformed, here and below.
    """
    if place is None:
        square = [[voxel(0, h, w) for w in range(4)] for h in range(4)]
    else:
        a, b = (choose(place, [T.int64(row[end]) for row in INPUT_ROWS]) for end in (0, 1))
        sign = factor(place, [row[2] for row in INPUT_ROWS])
        square = [[voxel(a, h, w) + sign * voxel(b, h, w) for w in range(4)] for h in range(4)]
    square = [[T.bind(value) for value in row] for row in square]
    for i, value in enumerate(along_both_axes(input_transform, square)):
        store(i, value)


def transform_filters(place, tap, store):
    """Emit store(i, G g) for the 4^2 places i behind one of the first axis; tap(t): that of a vector of filters."""
    if place is None:
        square = [[tap(t) for t in range(first, first + 3)] for first in (0, 3, 6)]
    else:
        f = [factor(place, column) for column in zip(*FILTER_ROWS, strict=True)]
        square = [[tap(t) * f[0] + tap(t + 9) * f[1] + tap(t + 18) * f[2] for t in range(i, i + 3)] for i in (0, 3, 6)]
    square = [[T.bind(value) for value in row] for row in square]
    for i, value in enumerate(along_both_axes(filter_transform, square)):
        store(i, value)


def transform_products(place, product, add):
    """Emit add(line, values), the part of one place of the first axis in A^T m, for a vector of tiles.

    product(i): m at the 4^2 places i behind that one. line: 2 d + h of the outputs, whose neighbours along w take turns.
    """
    outputs = along_both_axes(output_transform, [[product(4 * h + w) for w in range(4)] for h in range(4)])
    order = [T.int32(i % 2 * VECTOR + i // 2) for i in range(2 * VECTOR)]
    for h in range(2):
        pairs = T.bind(tvm.tirx.Shuffle(outputs[2 * h : 2 * h + 2], order))
        if place is None:
            add(h, pairs)
            continue
        for d in range(2):
            sign = choose(place, [T.float32(column[d]) for column in OUTPUT_COLUMNS])
            add(2 * d + h, T.Broadcast(sign, 2 * VECTOR) * pairs)


@dataclass(frozen=True)
class Operands:
    """The buffers of a convolution, and `stride` of `padded`; a residual that it lacks is never read."""

    padded: tvm.tirx.Buffer  # [elements]
    corner: tvm.tirx.Buffer  # [vectors of tiles, 4]: b, d, h, w of the first output
    start: tvm.tirx.Buffer  # [vectors of tiles]: where their patches begin in `padded`
    stride: tuple  # of a channel, along d, along h, and from even places of a line to odd ones
    weight: tvm.tirx.Buffer  # [Cout, blocks, taps, depth]
    bias: tvm.tirx.Buffer  # [Cout]
    residual: tvm.tirx.Buffer  # [elements]
    out: tvm.tirx.Buffer  # [elements]


@cache
def winograd(spec: Conv3d, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Conv3d`. An infinity or NaN of x may make NaN of any output of the tiles whose patches hold it."""
    cin, cout, has_residual = spec.cin, spec.cout, spec.has_residual
    depth, blocks = blocking(cin)
    chunks = depth // LINE
    micro = RegisterTile(isa, LINE, STEP * VECTOR, "float32")
    cols, panels = micro.tile.cols, micro.panels  # of a step
    assert STEP * VECTOR % cols == 0 and BLOCK % STEP == 0, "a step is whole panels, a task whole steps"
    assert cols % VECTOR == 0 and PART >= micro.tile.rows, "a panel is whole vectors of tiles, a part has a register tile"
    slice_rows = -(-cout // (-(-cout // CHANNELS) * micro.tile.rows)) * micro.tile.rows
    slices = -(-cout // slice_rows)
    part_rows = PART // micro.tile.rows * micro.tile.rows
    padding = pad_d, pad_h, pad_w = spec.geometry.padding
    kernel_size = spec.geometry.kernel
    taps, tile_d = prod(kernel_size), tile_depth(kernel_size)
    most_vectors = BLOCK * 2 // tile_d  # of tiles of one task
    places, lines = 4 if tile_d == 2 else 1, 2 * tile_d  # along the first axis; of outputs in a tile
    act = EMIT[spec.activation]

    @inline
    def split(x, source, padded, row, half, first):
        """The elements of two vectors of x, those of either parity next to each other; left to LLVM it is a gather"""
        both: T.let = x[vector(source, 2)]
        for parity in T.unroll(2):
            padded[vector(row + (pad_w + parity) % 2 * half + (pad_w + parity) // 2 + first)] = tvm.tirx.Shuffle(
                [both], [2 * i + parity for i in range(VECTOR)]
            )

    @inline
    def copy(x, source, padded, row, size, held):
        """A line of x into one of `padded`"""
        for j in range(size[2] // (2 * VECTOR)):
            split(x, source + j * 2 * VECTOR, padded, row, held[2], j * VECTOR)
        whole: T.let = size[2] // (2 * VECTOR) * VECTOR
        for parity in T.unroll(2):
            target: T.let = row + (pad_w + parity) % 2 * held[2] + (pad_w + parity) // 2
            for j in range((size[2] + 1 - parity) // 2 - whole):
                padded[target + whole + j] = x[source + 2 * (whole + j) + parity]

    @inline
    def replicate(x, padded, planes, size, held):
        """padded[plane, d, h, w % 2, w // 2] = x[plane, d - pad_d, h - pad_h, w - pad_w], outside of x that of its
        nearest voxel, also where only the last tiles reach"""
        for slab in T.parallel(planes * held[0]):
            d: T.let = T.max(T.min(slab % held[0] - pad_d, size[0] - 1), T.int64(0))
            for i in range(held[1]):
                h: T.let = T.max(T.min(i - pad_h, size[1] - 1), T.int64(0))
                row: T.let = (slab * held[1] + i) * 2 * held[2]
                source: T.let = ((slab // held[0] * size[0] + d) * size[1] + h) * size[2]
                copy(x, source, padded, row, size, held)
                for w in range(pad_w):
                    padded[row + w % 2 * held[2] + w // 2] = x[source]
                for j in range(2 * held[2] - pad_w - size[2]):
                    w: T.let = pad_w + size[2] + j
                    padded[row + w % 2 * held[2] + w // 2] = x[source + size[2] - 1]

    @inline
    def fill(x, padded, planes, size, held):
        """padded[plane, d, h, w % 2, w // 2] = x[plane, d - pad_d, h - pad_h, w - pad_w], zero outside"""
        for slab in T.parallel(planes * held[0]):
            d: T.let = slab % held[0] - pad_d
            for i in range(held[1]):
                h: T.let = i - pad_h
                row: T.let = (slab * held[1] + i) * 2 * held[2]
                for j in range(2 * held[2]):
                    padded[row + j] = T.float32(0)
                if T.And(T.And(d >= 0, d < size[0]), T.And(h >= 0, h < size[1])):
                    copy(x, ((slab // held[0] * size[0] + d) * size[1] + h) * size[2], padded, row, size, held)

    def place_of(place):
        return place if places > 1 else None

    pad = replicate if spec.edges else fill

    @inline
    def transform_x(place, padded, start, stride, first, count, block, v):
        """v[panel and chunk, :, c, :] = B^T x of `count` vectors of tiles from `first` on, over a block of channels"""
        for panel in range((count * VECTOR + cols - 1) // cols):
            for c in range(depth):
                if block * depth + c < cin:
                    for g in range(cols // VECTOR):
                        at: T.let = start[first + panel * (cols // VECTOR) + g] + (block * depth + c) * stride[0]
                        transform_patches(
                            place_of(place),
                            lambda d, h, w: padded[vector(at + d * stride[1] + h * stride[2] + w % 2 * stride[3] + w // 2)],
                            lambda i, value: T.buffer_store(
                                v, value, [panel * chunks + c // LINE, i, c % LINE, vector(g * VECTOR)]
                            ),
                        )
                else:
                    for i in range(16):
                        for lane in T.vectorized(cols):
                            v[panel * chunks + c // LINE, i, c % LINE, lane] = T.float32(0)

    def row_of_u(row, chunk, i):
        return row * (16 * chunks + 1) + chunk * 16 + i

    @inline
    def transform_weight(place, weight, first, count, block, u):
        """u[output channel and chunk and place, :] = G weight of `count` channels from `first` on, over a block of channels"""
        for r in range(count):
            for chunk in range(chunks):
                for part in range(LINE // VECTOR):
                    transform_filters(
                        place_of(place),
                        lambda t: weight[first + r, block, t, vector(chunk * LINE + part * VECTOR)],
                        lambda i, value: T.buffer_store(u, value, [row_of_u(r, chunk, i), vector(part * VECTOR)]),
                    )

    @inline
    def multiply(rows, first, first_of_part, panel, i, u, v, m):
        """m[first : first + rows, i, panel] = u @ v over a block of channels"""
        acc = micro.accumulators(rows, cols)
        source = T.alloc_buffer((rows,), "int64")
        acc.load(lambda r, column: T.float32(0))
        for chunk in range(chunks):
            for r in T.unroll(rows):
                source[r] = row_of_u(first_of_part + first + r, chunk, i)
            micro.multiply(acc, u, source, v, panel * chunks + chunk, i)
        acc.store(lambda value, r, column: T.buffer_store(m, value, [first + r, i * STEP * VECTOR + panel * cols + column]))

    def add(sums, row, line, column, values):
        at = [row, line, vector(column, 2)]
        T.buffer_store(sums, sums[tuple(at)] + values, at)

    @inline
    def add_outputs(place, first_of_part, rows, first, count, m, sums):
        """sums += the part of one place of the first axis in A^T m, of `count` vectors of tiles from `first` on"""
        for r in range(rows):
            for g in range(count):
                transform_products(
                    place_of(place),
                    lambda i: m[r, vector((i * STEP + g) * VECTOR)],
                    lambda line, values: add(sums, first_of_part + r, line, (first + g) * 2 * VECTOR, values),
                )

    def finished(value, residual, place):
        return act(value + residual[place] if has_residual else value)

    @inline
    def store_outputs(sums, residual, out, corner, first_vector, vectors, first, count, size):
        """out = act(sums + residual) where there are voxels; of the last tiles along an axis, half may be outside"""
        for g in range(vectors):
            w: T.let = corner[first_vector + g, 3]
            width: T.let = T.min(T.int64(2 * VECTOR), size[2] - w)
            for line in range(lines):
                d: T.let = corner[first_vector + g, 1] + line // 2
                h: T.let = corner[first_vector + g, 2] + line % 2
                if T.And(d < size[0], h < size[1]):
                    for r in range(count):
                        plane: T.let = corner[first_vector + g, 0] * cout + first + r
                        at: T.let = ((plane * size[0] + d) * size[1] + h) * size[2] + w
                        if width == 2 * VECTOR:
                            for i in T.vectorized(2 * VECTOR):
                                out[at + i] = finished(sums[r, line, g * 2 * VECTOR + i], residual, at + i)
                        else:
                            for i in range(width):
                                out[at + i] = finished(sums[r, line, g * 2 * VECTOR + i], residual, at + i)

    @inline
    def convolve(o, first_vector, vectors, first, count, size):
        # The last index but one of the data of v and a row of u are a cache line longer than needed, else all lines that are
        # read or written in turn would lie at distances of a power of two and share few places in the caches.
        v_data = T.alloc_buffer((panels * depth * 17 * cols,), "float32")  # B^T x [panel, channel, place, tile]
        v = T.decl_buffer(
            (panels * chunks, 16, LINE, cols), "float32", data=v_data.data, strides=[LINE * 17 * cols, cols, 17 * cols, 1]
        )
        u = T.alloc_buffer((slice_rows * (16 * chunks + 1), LINE), "float32")  # G weight [channel, chunk and place, LINE]
        m = T.alloc_buffer((part_rows, (16 * STEP + 1) * VECTOR), "float32")  # products [channel, place and tile]
        sums = T.alloc_buffer((slice_rows, lines, most_vectors * 2 * VECTOR), "float32")  # [channel, line of a tile, voxel]
        for r in range(count):
            for line in range(lines):
                for i in range(most_vectors * 2 * VECTOR):
                    sums[r, line, i] = o.bias[first + r]
        for block in range(T.int64(blocks)):
            for place in range(places):
                transform_weight(place, o.weight, first, count, block, u)
                for step in range((vectors + STEP - 1) // STEP):
                    here: T.let = T.min(T.int64(STEP), vectors - step * STEP)
                    transform_x(place, o.padded, o.start, o.stride, first_vector + step * STEP, here, block, v)
                    for part in range((count + part_rows - 1) // part_rows):
                        part_count: T.let = T.min(T.int64(part_rows), count - part * part_rows)
                        for i in range(16):
                            for panel in range((here * VECTOR + cols - 1) // cols):
                                micro.over_rows(
                                    part_count, lambda rows, r: multiply(rows, r, part * part_rows, panel, i, u, v, m)
                                )
                        add_outputs(place, part * part_rows, part_count, step * STEP, here, m, sums)
        store_outputs(sums, o.residual, o.out, o.corner, first_vector, vectors, first, count, size)

    batch = tvm.tirx.Var("batch", "int64")
    size, size_out = ([tvm.tirx.Var(f"{name}{axis}", "int64") for axis in "dhw"] for name in ("", "out_"))
    size_padded = [n + 2 * pad for n, pad in zip(size, padding, strict=True)]
    elements, elements_out = (batch * channels * d * h * w for channels, (d, h, w) in ((cin, size), (cout, size_out)))

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, residual_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("conv3d_winograd", "float32", isa, micro.tile)})
        x = match_buffer(x_, (batch, cin, *size), "float32")
        weight = match_buffer(weight_, (cout, blocks, taps, depth), "float32")
        bias = match_buffer(bias_, (cout,), "float32")
        out = match_buffer(out_, (batch, cout, *size_out), "float32")
        residual = match_buffer(residual_, (batch, cout, *size_out), "float32")
        check_size(size_padded, Geometry(kernel_size))
        check_edges(size, spec.edges)
        flat = T.decl_buffer((elements,), "float32", data=x.data)
        flat_residual = T.decl_buffer((elements_out,), "float32", data=(residual if has_residual else out).data)
        flat_out = T.decl_buffer((elements_out,), "float32", data=out.data)
        tiles_d: T.let = (size_out[0] + tile_d - 1) // tile_d
        tiles_h: T.let = (size_out[1] + 1) // 2
        vectors_w: T.let = (size_out[2] + 2 * VECTOR - 1) // (2 * VECTOR)  # of tiles, the last one filled up
        vectors: T.let = batch * tiles_d * tiles_h * vectors_w
        in_block = T.alloc_buffer((2,), "int64")  # vectors of a block, and blocks: in a buffer, or each use computes them
        in_block[0] = T.if_then_else(vectors * slices < TASKS * most_vectors, T.int64(BLOCK), T.int64(most_vectors))
        if (vectors + BLOCK - 1) // BLOCK * slices < T.Cast("int64", T.call_packed("runtime.NumThreads")):
            in_block[0] = T.int64(STEP)  # work for more threads: their blocks transform the same weights, which changes no bit
        in_block[1] = (vectors + in_block[0] - 1) // in_block[0]
        half: T.let = vectors_w * VECTOR + 1  # of a padded line: its even places lie before the odd ones
        slab: T.let = (2 * tiles_h + 2) * 2 * half
        depth_padded: T.let = tile_d * tiles_d + kernel_size[0] - 1
        plane: T.let = depth_padded * slab
        padded = T.alloc_buffer((batch * cin * plane,), "float32")
        corner = T.alloc_buffer((vectors + most_vectors, 4), "int64")  # b, d, h, w of the first output of a vector of tiles
        start = T.alloc_buffer((vectors + most_vectors,), "int64")  # where its patches begin in `padded`
        pad(flat, padded, batch * cin, size, (depth_padded, 2 * tiles_h + 2, half))
        for g in T.parallel(in_block[0] * in_block[1]):
            at: T.let = T.min(g, vectors - 1)  # past the last one, as that: something that can be read
            corner[g, 0] = at // (tiles_d * tiles_h * vectors_w)
            corner[g, 1] = at // (tiles_h * vectors_w) % tiles_d * tile_d
            corner[g, 2] = at // vectors_w % tiles_h * 2
            corner[g, 3] = at % vectors_w * 2 * VECTOR
            start[g] = corner[g, 0] * cin * plane + corner[g, 1] * slab + corner[g, 2] * 2 * half + corner[g, 3] // 2
        for task in T.parallel(slices * in_block[1]):
            first_vector: T.let = task % in_block[1] * in_block[0]
            vectors_here: T.let = T.min(in_block[0], vectors - first_vector)
            first: T.let = task // in_block[1] * slice_rows
            count: T.let = T.min(T.int64(slice_rows), cout - first)
            convolve(
                Operands(*(padded, corner, start, (plane, slab, 2 * half, half)), *(weight, bias, flat_residual, flat_out)),
                *(first_vector, vectors_here, first, count, size_out),
            )

    return kernel if has_residual else drop_parameters(kernel, "residual")
