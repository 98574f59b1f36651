"""Kernel maps as neighbour tables, see `layout.NeighbourTable`.

First every output row is probed at every tap: a warp has 32 rows that follow each other, and the warps of a block share the
taps. The table that this gives goes to scratch, in the order of the rows, with the Gray code of the taps that each row meets.
Rows are sorted by that, and a block a tile puts the table into the new order and lists the taps that any of its rows meets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer, named
from ..coordinates import key_of
from ..layout import MASK_TAPS
from ..script import inline
from ..spec.coordinate_index import COORDINATE_LIMIT, GRID
from ..spec.geometry import Geometry
from ..spec.kernel_map import InverseMap, ProbeMap, SubmanifoldMap
from .atomics import atomic_or
from .coordinate_index import Index, match_index
from .gpu import WARP, Gpu, kernel_name, stating
from .guards import check_map, match_status, reporting
from .launch import THREADS, blocks_for, for_each
from .neighbour_table import NEIGHBOURS, TILE_ROWS, Table, match_table
from .sort import SORT_REGISTERS, sort_pairs
from .warp import count_bits, count_bits_below

WARPS = THREADS // WARP
TAPS_AT_ONCE = 32  # that a tile looks at between two barriers: bits of a word
NARROW = 31  # taps whose Gray code is an int32
Y_MOST = 64  # blocks along y that share the taps of an inverse map


@dataclass(frozen=True, eq=False)
class Group:
    """The taps of one group, from `first` to `end` of all, Python ints or int64 expressions, and its place among the groups."""

    place: int
    first: object
    end: object

    @property
    def taps(self):
        return self.end - self.first


def groups_of(taps: int) -> list[Group]:
    """The groups of a map of `taps` taps."""
    count = NEIGHBOURS.tap_groups(taps)
    return [Group(place, *NEIGHBOURS.group_taps(place, count, taps)) for place in range(count)]


def scratch(name: str, shape, dtype: str):
    """A buffer in the device's memory, named as an assignment in a script names it."""
    return named(name, T.alloc_buffer(shape, dtype))


def arrange(neighbours, rows, group: Group, out: Table, row_at: Callable) -> None:
    """Emit a launch that fills the tiles of one group: neighbours [taps, rows] in the order row_at(slot) of rows.

    Of a group that is not there, which may be if its taps are expressions, nothing is written.
    """

    there = T.bool(True) if isinstance(group.first, int) else group.place < out.groups

    @inline
    def fill_tile(neighbours, rows, out, tile, thread):
        row = T.alloc_local((1,), "int64")
        bits = T.alloc_local((1,), "int32")
        source = T.alloc_local((1,), "int32")
        live = T.alloc_local((1,), "int32")  # taps that the tile meets, so far
        word = T.alloc_shared((1,), "int32")  # those of the taps that are looked at
        slot: T.let = tile * TILE_ROWS + T.Cast("int64", thread)
        line: T.let = group.place * out.tiles_of_group + tile
        row[0] = T.int64(-1)
        if slot < rows:
            row[0] = T.Cast("int64", row_at(slot))
        if there:
            out.order[group.place, slot] = T.Cast("int32", row[0])
        live[0] = T.int32(0)
        for step in range((group.taps + (TAPS_AT_ONCE - 1)) // TAPS_AT_ONCE):
            if thread == 0:
                word[0] = T.int32(0)
            T.tvm_storage_sync("shared")
            bits[0] = T.int32(0)
            for bit in range(TAPS_AT_ONCE):
                tap: T.let = group.first + step * TAPS_AT_ONCE + bit
                if tap < group.end:
                    source[0] = T.int32(-1)
                    if row[0] >= 0:
                        source[0] = neighbours[tap, row[0]]
                    out.neighbours[tap, slot] = source[0]
                    if source[0] >= 0:
                        bits[0] = bits[0] | T.shift_left(T.int32(1), bit)
            if bits[0] != 0:
                T.evaluate(atomic_or(word, 0, bits[0]))
            T.tvm_storage_sync("shared")
            bits[0] = word[0]
            if thread < TAPS_AT_ONCE:
                if (T.shift_right(bits[0], thread) & 1) != 0:
                    before: T.let = count_bits_below(bits[0], thread)
                    out.tiles[line, 1 + live[0] + before] = T.Cast(
                        "int32", group.first + step * TAPS_AT_ONCE + T.Cast("int64", thread)
                    )
            live[0] = live[0] + count_bits(bits[0])
            T.tvm_storage_sync("shared")
        if T.And(thread == 0, there):
            out.tiles[line, 0] = live[0]

    @inline
    def emit(neighbours, rows, out):
        with T.launch_thread("blockIdx.x", out.tiles_of_group) as tile:
            thread = T.launch_thread("threadIdx.x", TILE_ROWS)
            fill_tile(neighbours, rows, out, T.Cast("int64", tile), thread)

    emit(neighbours, rows, out)


def arrange_by_codes(neighbours, codes, rows, group: Group, bits, out: Table) -> None:
    """Emit launches that arrange one group by the codes of its rows, of `bits` bits, an int or an expression."""
    order = scratch(f"order_of_{group.place}", (rows,), "int32")
    ascending = scratch(f"ascending_{group.place}", (rows,), codes.dtype)
    sort_pairs(codes, None, ascending, order, rows, bits)
    arrange(neighbours, rows, group, out, lambda slot: order[slot])


@dataclass(frozen=True, eq=False)
class Probe:
    """What finds the input rows that an output row meets, by the law of a geometry."""

    geometry: Geometry
    index: Index

    @property
    def dtype(self) -> str:
        """Of input coordinates, and of steps to them."""
        g = self.geometry
        lasts = (d * (k - 1) for k, d in zip(g.kernel, g.dilation, strict=True))
        return "int32" if max(*g.stride, *g.padding, *lasts) < COORDINATE_LIMIT // 2 else "int64"

    def source_along(self, value, k, axis: int):
        """(input coordinate, whether there is one) along x, y or z for tap `k` of that axis and an output coordinate."""
        g, dtype = self.geometry, self.dtype
        offset = T.Cast(dtype, k) * g.dilation[axis] - g.padding[axis]
        if not g.transposed:
            return T.Cast(dtype, value) * g.stride[axis] + offset, T.bool(True)
        scaled, stride = T.Cast(dtype, value) - offset, tvm.tirx.IntImm(dtype, g.stride[axis])
        return T.floordiv(scaled, stride), T.floormod(scaled, stride) == 0

    def there(self, site, taps):
        """Whether there is an input coordinate for an output site, int32 [4], and the taps of x, y and z."""
        there = T.bool(True)
        for axis in range(3):
            there = there & self.source_along(site[axis + 1], taps[axis], axis)[1]
        return there

    def places(self, at):
        """Where a coordinate lies in the box, along each axis; those outside are negative or too large."""
        return [at[axis] - T.Cast(self.dtype, self.index.plan.origin(axis)) for axis in range(4)]

    def inside(self, at):
        """Whether it lies in the box: an unsigned comparison along each axis."""
        unsigned, inside = f"u{self.dtype}", T.bool(True)
        for axis, place in enumerate(self.places(at)):
            inside = inside & (T.Cast(unsigned, place) < T.Cast(unsigned, self.index.plan.extent(axis)))
        return inside

    def cell(self, at):
        """The cell of a coordinate of the box."""
        cell, *places = (T.Cast("int32", place) for place in self.places(at))
        for axis, place in enumerate(places, start=1):
            cell = cell * T.Cast("int32", self.index.plan.extent(axis)) + place
        return cell

    @inline
    def find(self, site, tap, found):
        """found[0] = the input row that an output site meets at a tap, or -1."""
        at = T.alloc_local((4,), self.dtype)  # the input coordinate; values that stand in buffers are computed once
        taps = T.alloc_local((3,), "int32")
        cell = T.alloc_local((1,), "int32")
        key = T.alloc_local((1,), "int64")
        taps[0] = tap // (self.geometry.kernel[1] * self.geometry.kernel[2])
        taps[1] = tap // self.geometry.kernel[2] % self.geometry.kernel[1]
        taps[2] = tap % self.geometry.kernel[2]
        at[0] = T.Cast(self.dtype, site[0])
        at[1] = self.source_along(site[1], taps[0], 0)[0]
        at[2] = self.source_along(site[2], taps[1], 1)[0]
        at[3] = self.source_along(site[3], taps[2], 2)[0]
        found[0] = T.int32(-1)
        if self.there(site, taps) & self.inside(at):
            if self.index.plan.method == GRID:
                cell[0] = self.cell(at)
                found[0] = self.index.slots[cell[0]]
            else:
                key[0] = key_of((at[0], at[1], at[2], at[3]))
                self.index.find_key(key[0], found)


def probe_rows(probe: Probe, coords, neighbours, rows) -> None:
    """Emit a launch that fills neighbours [taps, rows] for output sites int32 [rows, 4]."""
    taps = probe.geometry.taps

    @inline
    def emit(coords, neighbours, rows):
        with T.launch_thread("blockIdx.x", blocks_for(rows, WARP)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            site = T.alloc_local((4,), "int32")
            found = T.alloc_local((1,), "int32")
            row: T.let = T.Cast("int64", block) * WARP + T.Cast("int64", thread % WARP)
            if row < rows:
                for axis in T.unroll(4):
                    site[axis] = coords[row, axis]
                for i in range(-(-taps // WARPS)):
                    tap: T.let = i * WARPS + thread // WARP
                    if tap < taps:
                        probe.find(site, tap, found)
                        neighbours[tap, row] = found[0]

    emit(coords, neighbours, rows)


def code_rows(neighbours, codes, rows, group: Group) -> None:
    """Emit a launch that fills codes [rows]: the Gray code of the taps of a group that each row meets; of many taps, 0."""
    dtype = codes.dtype

    @inline
    def code(neighbours, codes, row):
        mask = T.alloc_local((1,), dtype)
        mask[0] = T.Cast(dtype, 0)
        if group.taps <= MASK_TAPS:
            for i in range(group.taps):
                if neighbours[group.first + i, row] >= 0:
                    mask[0] = mask[0] | T.shift_left(T.Cast(dtype, 1), T.Cast(dtype, i))
        codes[row] = mask[0] ^ T.shift_right(mask[0], T.Cast(dtype, 1))

    for_each(rows, lambda row: code(neighbours, codes, row))


def arrange_group(neighbours, rows, group: Group, out: Table) -> None:
    """Emit launches that arrange one group, whose taps are known, from neighbours [taps, rows]."""
    if group.taps > MASK_TAPS:
        arrange(neighbours, rows, group, out, lambda slot: slot)
    else:
        codes = scratch(f"codes_of_{group.place}", (rows,), "int32" if group.taps <= NARROW else "int64")
        code_rows(neighbours, codes, rows, group)
        arrange_by_codes(neighbours, codes, rows, group, group.taps, out)


def note_rows(map_rows, rows_in, rows_out) -> None:
    """Emit a launch that writes the numbers of input and output rows of a map."""

    @inline
    def emit(map_rows, rows_out):
        with T.launch_thread("blockIdx.x", 1):
            T.launch_thread("threadIdx.x", 1)
            map_rows[0] = rows_in
            map_rows[1] = rows_out

    emit(map_rows, rows_out)


@cache
def submanifold_map(spec: SubmanifoldMap, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `SubmanifoldMap`."""
    return map_onto(spec.geometry, "submanifold_map", "slots_out_")


@cache
def probe_map(spec: ProbeMap, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `ProbeMap`."""
    return map_onto(spec.geometry, "probe_map", *([] if spec.chosen else ["slots_out_"]))


def map_onto(geometry: Geometry, name: str, *without: str) -> tvm.tirx.PrimFunc:
    """The map onto output coordinates, by the law; `without`: parameters to be dropped."""
    taps = geometry.taps

    def arrange_all(found, rows, out):
        for group in groups_of(taps):
            arrange_group(found, rows, group, out)

    @script.prim_func(s_tir=True)
    def kernel(
        coords_: T.handle,
        plan_: T.handle,
        slots_: T.handle,
        keys_: T.handle,
        slots_out_: T.handle,
        neighbours_: T.handle,
        order_: T.handle,
        tiles_: T.handle,
        rows_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name(name)})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        index = T.meta_var(match_index(plan_, slots_, keys_))
        out = T.meta_var(match_table(neighbours_, order_, tiles_, taps))
        map_rows = match_buffer(rows_, (2,), "int64")
        found = T.alloc_buffer((taps, rows), "int32")
        probe_rows(Probe(geometry, index), coords, found, rows)
        arrange_all(found, rows, out)
        note_rows(map_rows, index.plan.rows, rows)

    return stating(script.drop_parameters(kernel, *without), SORT_REGISTERS)


@cache
def inverse_map(spec: InverseMap, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `InverseMap`. The number of taps is known from the given map alone."""

    def group_at(place: int, groups, taps) -> Group:
        """A group, without taps where there are fewer groups."""
        return Group(place, *(T.min(tap, taps) for tap in NEIGHBOURS.group_taps(place, groups, taps)))

    @inline
    def check(status, map_rows, inverse_rows, rows):
        with T.launch_thread("blockIdx.x", 1):
            T.launch_thread("threadIdx.x", 1)
            check_map(status, map_rows, rows, map_rows[1], T.int64(0), T.int64(0))
            inverse_rows[0] = map_rows[1]
            inverse_rows[1] = rows

    @inline
    def clear_one(flat, place):
        flat[place] = T.int32(-1)

    @inline
    def clear(found, size):
        flat = T.decl_buffer((size,), "int32", data=found.data)
        for_each(size, lambda place: clear_one(flat, place))

    @inline
    def exchange(given, found, rows):
        """found[tap, i] = o for all that meet: an input row meets at most one output row at a tap"""
        ways: T.let = T.min(given.taps, T.int64(Y_MOST))
        with T.launch_thread("blockIdx.x", blocks_for(given.slots)) as block:
            way = T.launch_thread("blockIdx.y", ways)
            thread = T.launch_thread("threadIdx.x", THREADS)
            slot: T.let = T.Cast("int64", block) * THREADS + T.Cast("int64", thread)
            if slot < given.slots:
                for i in range((given.taps + ways - 1) // ways):
                    tap: T.let = i * ways + T.Cast("int64", way)
                    if tap < given.taps:
                        source: T.let = T.Cast("int64", given.neighbours[tap, slot])
                        if T.And(source >= 0, source < rows):
                            found[tap, source] = given.order[tap * given.groups // given.taps, slot]

    def arrange_all(found, rows, out):
        for place in range(NEIGHBOURS.groups):
            group = group_at(place, out.groups, out.taps)
            codes = scratch(f"codes_of_{place}", (rows,), "int64")
            code_rows(found, codes, rows, group)
            bits = T.max(T.min(group.taps, T.int64(MASK_TAPS)), T.int64(1))
            arrange_by_codes(found, codes, rows, group, bits, out)

    @script.prim_func(s_tir=True)
    def kernel(
        neighbours_: T.handle,
        order_: T.handle,
        tiles_: T.handle,
        rows_: T.handle,
        coords_: T.handle,
        status_: T.handle,
        inverse_neighbours_: T.handle,
        inverse_order_: T.handle,
        inverse_tiles_: T.handle,
        inverse_rows_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("inverse_map")})
        rows = T.int64()
        given = T.meta_var(match_table(neighbours_, order_, tiles_))
        map_rows = match_buffer(rows_, (2,), "int64")
        match_buffer(coords_, (rows, 4), "int32")
        status = T.meta_var(match_status(status_))
        out = T.meta_var(match_table(inverse_neighbours_, inverse_order_, inverse_tiles_, given.taps, "inverse_"))
        inverse_rows = match_buffer(inverse_rows_, (2,), "int64")
        found = T.alloc_buffer((given.taps, rows), "int32")
        check(status, map_rows, inverse_rows, rows)
        clear(found, given.taps * rows)
        exchange(given, found, rows)
        arrange_all(found, rows, out)

    return stating(reporting(kernel), SORT_REGISTERS)
