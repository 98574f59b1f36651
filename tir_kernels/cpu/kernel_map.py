"""Kernel maps as pairs by block, see `layout.PairsByBlock`.

A block of output rows is one task. It meets the taps in order, a group of taps along z at a time: what each row finds there
goes to scratch, from which `pairs.Packer` takes the hits of one tap after the other. In a grid the taps of a group are
neighbours, and a row loads them as one vector. Where all taps of a block stay in the grid and the empty cells around it, the
first one's cell tells all others; else every axis is looked at on its own first. In a hash a group meets one or two buckets.
"""

from dataclasses import dataclass
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..coordinates import BUCKET, BUCKET_BITS, KEY_BITS, key_of
from ..script import inline
from ..spec.coordinate_index import COORDINATE_LIMIT, GRID
from ..spec.geometry import Geometry
from ..spec.kernel_map import InverseMap, ProbeMap, SubmanifoldMap
from .coordinate_index import LINE_PAD, MARGIN, SPARE, Index, match_index
from .guards import check_map
from .isa import Isa
from .pairs import Packer, Pairs, match_pairs

NO_CELL = -(1 << 29)  # below zero with any cells added, and four of them are still an int32
WINDOW_MOST = LINE_PAD + 1  # taps of a group: one that meets the box ends within the empty cells
assert WINDOW_MOST <= BUCKET + 1, "a group lies in two buckets at most"


@dataclass(frozen=True)
class Windows:
    """Taps in groups along z: `size` neighbours, for which each row loads `step` cells into scratch, a power of two."""

    size: int
    step: int

    @classmethod
    def of(cls, geometry: Geometry) -> "Windows":
        """Groups of a geometry."""
        adjacent = geometry.dilation[2] == 1 and not geometry.transposed
        size = min(geometry.kernel[2], WINDOW_MOST) if adjacent else 1
        step = 1 << (size - 1).bit_length()
        assert step <= min(MARGIN, SPARE)
        return cls(size, step)


@dataclass(frozen=True, eq=False)
class Box:
    """The numbers of a plan as a task keeps them, in registers: `numbers`, a buffer of `dtype`."""

    numbers: object
    dtype: str

    ORIGIN, EXTENT, PAD, LINE, PLANE, VOLUME, MARGIN, SIZE = 0, 4, 8, 12, 13, 14, 15, 16

    @inline
    def read(self, plan):
        for axis in T.unroll(4):
            self.numbers[axis] = T.Cast(self.dtype, plan.origin(axis))
            self.numbers[4 + axis] = T.Cast(self.dtype, plan.extent(axis))
        self.numbers[8] = T.cast(0, self.dtype)
        for axis in T.unroll(3):
            self.numbers[9 + axis] = T.Cast(self.dtype, plan.pad(axis))
        self.numbers[12] = T.Cast(self.dtype, plan.extent(3))
        self.numbers[13] = T.Cast(self.dtype, plan.extent(2) * plan.extent(3))
        self.numbers[14] = T.Cast(self.dtype, plan.extent(1) * plan.extent(2) * plan.extent(3))
        self.numbers[15] = T.Cast(self.dtype, plan.margin)

    def origin(self, axis: int):
        """The lowest batch, x, y or z."""
        return self.numbers[self.ORIGIN + axis]

    def extent(self, axis: int):
        """Cells along an axis, with the empty ones behind the box."""
        return self.numbers[self.EXTENT + axis]

    def pad(self, axis: int):
        """Empty cells behind the box, and before it; none along the batch."""
        return self.numbers[self.PAD + axis]

    def step(self, axis: int):
        """Cells from one batch element, x, y or z to the next."""
        return 1 if axis == 3 else self.numbers[(self.VOLUME, self.PLANE, self.LINE)[axis]]

    @property
    def margin(self):
        return self.numbers[self.MARGIN]


@dataclass(frozen=True, eq=False)
class Probe:
    """What all macros of a map's kernel need: output coordinates int32 [M, 4], the index of the input, and the pairs."""

    coords: object
    index: Index
    pairs: Pairs

    @property
    def plan(self):
        return self.index.plan


class MapKernel:
    """The macros of one geometry: `emit` maps a block of output rows."""

    def __init__(self, geometry: Geometry, isa: Isa):
        self.geometry = geometry
        self.windows = Windows.of(geometry)
        self.packer = Packer.of(isa, self.windows.step)
        lasts = (d * (k - 1) for k, d in zip(geometry.kernel, geometry.dilation, strict=True))
        most = max(*geometry.stride, *geometry.padding, *lasts)
        self.most = most  # that an input coordinate lies from the multiple of an output coordinate
        self.dtype = "int32" if most < COORDINATE_LIMIT // 2 else "int64"  # of input coordinates, and steps to them

    def groups(self, zs: int) -> int:
        return -(-zs // self.windows.size)

    def source(self, value, k, axis: int, dtype: str = "int64"):
        """(input coordinate, whether there is one) along an axis for tap `k` of that axis and an output coordinate."""
        g = self.geometry
        offset = T.Cast(dtype, k) * g.dilation[axis] - g.padding[axis]
        if not g.transposed:
            return T.Cast(dtype, value) * g.stride[axis] + offset, T.bool(True)
        scaled, stride = T.Cast(dtype, value) - offset, tvm.tirx.IntImm(dtype, g.stride[axis])
        return T.floordiv(scaled, stride), T.floormod(scaled, stride) == 0

    def place(self, p: Probe, box: Box, row, k, axis: int):
        """(place in the box, whether there is one) along batch, x, y or z for tap `k` of that axis and an output row."""
        if axis == 0:
            return T.Cast(box.dtype, p.coords[row, 0]) - box.origin(0), T.bool(True)
        value, there = self.source(p.coords[row, axis], k, axis - 1, box.dtype)
        return value - box.origin(axis), there

    def window_inside(self, p: Probe, box: Box, row):
        """Whether all taps of a row lie in the grid or in the empty cells around it, a TIR expression."""
        inside = T.bool(True)
        lasts = (d * (k - 1) for k, d in zip(self.geometry.kernel, self.geometry.dilation, strict=True))
        for axis, last in enumerate((0, *lasts)):
            place, _ = self.place(p, box, row, 0, axis)
            inside = inside & (place >= T.cast(0, box.dtype) - box.pad(axis)) & (place + last < box.extent(axis))
        return inside

    def first_cell(self, p: Probe, box: Box, row):
        """The cell of a row's first tap, where `window_inside`."""
        cell = box.margin
        for axis in range(4):
            cell = cell + self.place(p, box, row, 0, axis)[0] * box.step(axis)
        return T.Cast("int32", cell)

    def emit(self, p: Probe, block, first, count):
        """Emit: the pairs of a block, output rows first .. first + count."""
        g, windows, packer = self.geometry, self.windows, self.packer
        xs, ys, zs = g.kernel
        dx, dy, dz = g.dilation
        size, step, groups = windows.size, windows.step, self.groups(g.kernel[2])
        columns = xs * ys

        def members(group):
            """Taps of a group along z."""
            return T.min(T.int64(size), zs - group * size) if zs % size else T.int64(size)

        @inline
        def pack_group(p, block, cursor, near, count, column, group):
            for z in range(members(group)):
                p.pairs.start(block, column * zs + group * size + z, cursor)
                packer.pack(p.pairs, block, cursor, near, z, count)

        @inline
        def look_at_rows(p, box, cells, outside, first, count):
            outside[0] = T.int32(0)
            for i in range(count):
                outside[0] = outside[0] | T.Cast("int32", T.Not(self.window_inside(p, box, first + i)))
                cells[i] = self.first_cell(p, box, first + i)

        @inline
        def pack_windows(p, box, block, cursor, near, cells, count):
            for column in range(T.int64(columns)):
                for group in range(T.int64(groups)):
                    delta: T.let = T.Cast(
                        "int32",
                        T.Cast(box.dtype, column // ys * dx) * box.step(1)
                        + T.Cast(box.dtype, column % ys * dy) * box.step(2)
                        + T.Cast(box.dtype, group * (size * dz)),
                    )
                    for i in range(count):
                        cell: T.let = T.Cast("int64", cells[i] + delta)
                        for z in T.vectorized(step):
                            near[i * step + z] = p.index.slots[cell + z]
                    pack_group(p, block, cursor, near, count, column, group)

        def cell_along(p, box, axis, k, row):
            """The cells before a tap of x, y or a group of z, NO_CELL where it misses the box; for x the batch's as well."""
            place, there = self.place(p, box, row, k * size if axis == 3 else k, axis)
            if axis == 3:  # the taps of a group stay on its line
                there = there & (place + (size - 1) >= 0) & (place < box.extent(3) - box.pad(3))
            else:
                there = there & (place >= 0) & (place < box.extent(axis))
            cell = place * box.step(axis)
            if axis == 1:
                batch, _ = self.place(p, box, row, 0, 0)
                there = there & (batch >= 0) & (batch < box.extent(0))
                cell = cell + batch * box.step(0) + box.margin
            return T.Select(there, T.Cast("int32", cell), T.int32(NO_CELL))

        @inline
        def cells_along(p, box, along, first, count, axis, row, taps):
            for k in range(T.int64(taps)):
                for i in range(count):
                    along[(row + k) * p.pairs.block_rows + i] = cell_along(p, box, axis, k, first + i)

        @inline
        def pack_axes(p, box, block, cursor, near, first, count):
            along = T.alloc_buffer(((xs + ys + groups) * p.pairs.block_rows,), "int32")
            cells_along(p, box, along, first, count, 1, 0, xs)
            cells_along(p, box, along, first, count, 2, xs, ys)
            cells_along(p, box, along, first, count, 3, xs + ys, groups)
            for column in range(T.int64(columns)):
                for group in range(T.int64(groups)):
                    x: T.let = column // ys * p.pairs.block_rows
                    y: T.let = (xs + column % ys) * p.pairs.block_rows
                    z: T.let = (xs + ys + group) * p.pairs.block_rows
                    for i in range(count):
                        cell: T.let = T.Cast("int64", T.max(along[x + i] + along[y + i] + along[z + i], T.int32(0)))
                        for t in T.vectorized(step):
                            near[i * step + t] = p.index.slots[cell + t]
                    pack_group(p, block, cursor, near, count, column, group)

        @inline
        def probe_window(p, near, i, key):
            bucket = T.alloc_buffer((2,), "int64")
            p.index.table.find_bucket(key >> BUCKET_BITS, bucket, 0)
            bucket[1] = bucket[0]
            if (key + (size - 1)) >> BUCKET_BITS != key >> BUCKET_BITS:
                p.index.table.find_bucket((key >> BUCKET_BITS) + 1, bucket, 1)
            for t in T.unroll(size):
                near[i * step + t] = p.index.slots[
                    T.Select((key & (BUCKET - 1)) + t < BUCKET, bucket[0] * BUCKET, bucket[1] * BUCKET - BUCKET)
                    + ((key & (BUCKET - 1)) + t)
                ]

        def meets_box(p, batch, x, y, z):
            """Whether a group of taps from z on meets the box of the plan; far outside of it no key could be formed."""
            inside = p.plan.contains_along(0, batch) & p.plan.contains_along(1, x) & p.plan.contains_along(2, y)
            return inside & (z + (size - 1) >= p.plan.origin(3)) & (z < p.plan.origin(3) + p.plan.extent(3))

        @inline
        def probe_groups(p, block, cursor, near, first, count):
            for column in range(T.int64(columns)):
                for group in range(T.int64(groups)):
                    for i in range(count):
                        x: T.let = self.source(p.coords[first + i, 1], column // ys, 0)[0]
                        y: T.let = self.source(p.coords[first + i, 2], column % ys, 1)[0]
                        z: T.let = self.source(p.coords[first + i, 3], group * size, 2)[0]
                        exact: T.let = (
                            self.source(p.coords[first + i, 1], column // ys, 0)[1]
                            & self.source(p.coords[first + i, 2], column % ys, 1)[1]
                            & self.source(p.coords[first + i, 3], group * size, 2)[1]
                        )
                        for t in T.vectorized(step):
                            near[i * step + t] = T.int32(-1)
                        if exact & meets_box(p, p.coords[first + i, 0], x, y, z):
                            probe_window(p, near, i, key_of((p.coords[first + i, 0], x, y, z)))
                    pack_group(p, block, cursor, near, count, column, group)

        @inline
        def probe_near(p, block, cursor, near, first, count):
            """As `probe_groups`, from the key of each row's first tap: taps this close to voxels always have one."""
            keys = T.alloc_buffer((p.pairs.block_rows,), "int64")
            for i in range(count):
                x: T.let = self.source(p.coords[first + i, 1], 0, 0)[0]
                y: T.let = self.source(p.coords[first + i, 2], 0, 1)[0]
                z: T.let = self.source(p.coords[first + i, 3], 0, 2)[0]
                keys[i] = key_of((p.coords[first + i, 0], x, y, z))
            for column in range(T.int64(columns)):
                for group in range(T.int64(groups)):
                    delta: T.let = (column // ys * dx << (2 * KEY_BITS)) + (column % ys * dy << KEY_BITS) + group * (size * dz)
                    for i in range(count):
                        probe_window(p, near, i, keys[i] + delta)
                    pack_group(p, block, cursor, near, count, column, group)

        is_near = g.stride == (1, 1, 1) and not g.transposed and self.most < COORDINATE_LIMIT

        @inline
        def in_grid(p, block, cursor, near, first, count):
            numbers = T.alloc_buffer((Box.SIZE,), self.dtype)
            box = T.meta_var(Box(numbers, self.dtype))
            box.read(p.plan)
            if T.bool(not g.transposed):
                cells = T.alloc_buffer((p.pairs.block_rows,), "int32")
                outside = T.alloc_buffer((1,), "int32")
                look_at_rows(p, box, cells, outside, first, count)
                if outside[0] == 0:
                    pack_windows(p, box, block, cursor, near, cells, count)
                else:
                    pack_axes(p, box, block, cursor, near, first, count)
            else:
                pack_axes(p, box, block, cursor, near, first, count)

        @inline
        def map_block(p, block, first, count):
            near = T.alloc_buffer((packer.room(p.pairs.block_rows),), "int32")
            cursor = T.alloc_buffer((1,), "int64")
            cursor[0] = T.int64(0)
            if p.plan.method == GRID:
                in_grid(p, block, cursor, near, first, count)
            elif is_near:
                probe_near(p, block, cursor, near, first, count)
            else:
                probe_groups(p, block, cursor, near, first, count)
            p.pairs.start(block, T.int64(columns * zs), cursor)

        map_block(p, block, first, count)


@cache
def submanifold_map(spec: SubmanifoldMap, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SubmanifoldMap`."""
    return _map_onto(spec.geometry, isa, "submanifold_map", "slots_out_")


@cache
def probe_map(spec: ProbeMap, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `ProbeMap`."""
    return _map_onto(spec.geometry, isa, "probe_map", *([] if spec.chosen else ["slots_out_"]))


def _map_onto(geometry: Geometry, isa: Isa, name: str, *without: str) -> tvm.tirx.PrimFunc:
    """The map onto output coordinates, by the law; `without`: parameters to be dropped."""
    taps, maps = geometry.taps, MapKernel(geometry, isa)

    @inline
    def emit_blocks(p, rows):
        if maps.packer.llvm_ir is not None:
            T.attr(T.int32(0), "pragma_import_llvm", maps.packer.llvm_ir)
        for block in T.parallel(p.pairs.blocks):
            T.attr(T.int32(0), "pragma_parallel_stride_pattern", 1)
            first: T.let = block * p.pairs.block_rows
            maps.emit(p, block, first, T.min(p.pairs.block_rows, rows - first))

    @script.prim_func(s_tir=True)
    def kernel(
        coords_: T.handle,
        plan_: T.handle,
        slots_: T.handle,
        keys_: T.handle,
        slots_out_: T.handle,
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        index = T.meta_var(match_index(plan_, slots_, keys_))
        pairs = T.meta_var(match_pairs(pair_in_, pair_out_, segment_, taps + 1))
        p = T.meta_var(Probe(coords, index, pairs))
        map_rows[0] = index.plan.rows
        map_rows[1] = rows
        emit_blocks(p, rows)

    return script.drop_parameters(kernel, *without)


@cache
def inverse_map(spec: InverseMap, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `InverseMap`."""

    packer = Packer.of(isa, 1)

    @inline
    def pack_blocks(inverse, table, rows, taps):
        if packer.llvm_ir is not None:
            T.attr(T.int32(0), "pragma_import_llvm", packer.llvm_ir)
        for block in T.parallel(inverse.blocks):
            cursor = T.alloc_buffer((1,), "int64")
            first: T.let = block * inverse.block_rows
            cursor[0] = T.int64(0)
            for tap in range(taps):
                inverse.start(block, tap, cursor)
                packer.pack(inverse, block, cursor, table, tap * rows + first, T.min(inverse.block_rows, rows - first))
            inverse.start(block, taps, cursor)

    @script.prim_func(s_tir=True)
    def kernel(
        pair_in_: T.handle,
        pair_out_: T.handle,
        segment_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        coords_: T.handle,
        inverse_in_: T.handle,
        inverse_out_: T.handle,
        inverse_segment_: T.handle,
        inverse_rows: T.Buffer((2,), "int64"),
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "inverse_map"})
        rows, columns = T.int64(), T.int64()
        pairs = T.meta_var(match_pairs(pair_in_, pair_out_, segment_, columns))
        match_buffer(coords_, (rows, 4), "int32")
        inverse = T.meta_var(match_pairs(inverse_in_, inverse_out_, inverse_segment_, columns, "inverse_"))
        taps: T.let = columns - 1
        check_map(map_rows, rows, map_rows[1], taps, taps)
        inverse_rows[0] = map_rows[1]
        inverse_rows[1] = map_rows[0]
        table = T.alloc_buffer((packer.room((columns - 1) * rows),), "int32")
        for tap in T.parallel(taps):  # an input row meets at most one output row at a tap: no write is shared
            for row in range(rows):
                table[tap * rows + row] = T.int32(-1)
            for block in range(pairs.blocks):
                for i in range(T.Cast("int64", pairs.segment[block, tap + 1] - pairs.segment[block, tap])):
                    pair: T.let = T.Cast("int64", pairs.segment[block, tap]) + i
                    table[tap * rows + T.Cast("int64", pairs.pair_in[block, pair])] = T.Cast(
                        "int32", block * pairs.block_rows + T.Cast("int64", pairs.pair_out[block, pair])
                    )
        pack_blocks(inverse, table, rows, taps)

    return kernel
