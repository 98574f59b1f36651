"""Output sites of strided and transposed sparse convolutions on a device: plan, find, copy.

A site is first touched at the least place, tap * rows + row, from which a tap touches it. Threads look at all places: they note
the least place of every site by an atomic minimum, then mark the places that are those, a bit each, and a prefix sum over the
words of bits gives the order of the sites.
"""

from dataclasses import dataclass
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..bounds import LinearBound, with_bounds
from ..buffers import match_buffer, named
from ..coordinates import Plan, choose, grid_bound, key_of, match_plan
from ..guards import RAISE_SITE_COUNT, RAISE_SITE_MEMORY, STATUS_CODE
from ..integers import MOST, divide
from ..memory import ASK_BYTES, DEVICE_MEBIBYTES
from ..script import inline
from ..site_box import range_of, site_box
from ..spec.coordinate_index import GRID, HASH, PLAN_EXTENT, PLAN_METHOD, PLAN_SIZE
from ..spec.sites import CopySites, FindSites, PlanSites, most_sites, touched_once
from .atomics import atomic_min
from .coordinate_index import FREE, clear_plan, find_bucket, take_bucket
from .extremes import find_extremes
from .gpu import WARP, Gpu, kernel_name, stating
from .guards import match_status, report, reporting
from .launch import THREADS, blocks_for, for_each
from .scan import SCAN_REGISTERS, exclusive_scan
from .sort import SORT_REGISTERS, sort_pairs
from .warp import ballot, count_bits, count_bits_below

WARPS = THREADS // WARP
UNTOUCHED = 2**63 - 1  # a place behind all others
BATCH_BITS = 12
# A grid takes 8 bytes a cell, a hash 32 bytes a site that may be, as it has room for all of them: at most twice as many.
GRID_CELLS_PER_SITE = 8
BYTES_PER_SITE = 16 + 8 * GRID_CELLS_PER_SITE  # at most, with its row of the list


@cache
def plan_sites(spec: PlanSites, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `PlanSites`: size = (1, int64 of a grid or hash, rows of the list). Where it refuses no site is in the box."""
    geometry, shape, method = spec.geometry, spec.shape, spec.method

    @inline
    def empty_box(plan, size):
        plan.entries[PLAN_METHOD] = T.int64(HASH)
        plan.entries[PLAN_EXTENT] = T.int64(0)
        size[1] = T.int64(2)
        size[2] = T.int64(1)

    def mebibytes_left(rows):
        """What the device has left, an int32 expression, where the sites may take much; a computation of the host."""
        most = T.Cast("float64", rows) * (most_sites(geometry) * BYTES_PER_SITE)
        return T.if_then_else(most > T.float64(ASK_BYTES), T.call_packed(DEVICE_MEBIBYTES), T.int32(MOST))

    @inline
    def check_memory(status, size, left):
        taken: T.let = size[1] * 8 + size[2] * 16
        if taken > T.Cast("int64", left) << 20:
            report(status, RAISE_SITE_MEMORY, size[2], taken, T.Cast("int64", left) << 20)

    @script.prim_func(s_tir=True)
    def kernel(
        coords_: T.handle,
        size_x: T.int64,
        size_y: T.int64,
        size_z: T.int64,
        status_: T.handle,
        plan_: T.handle,
        size_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("plan_sites")})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        status = T.meta_var(match_status(status_))
        plan = T.meta_var(match_plan(plan_))
        size = match_buffer(size_, (3,), "int64")
        left: T.let = mebibytes_left(rows)
        extremes = T.meta_var(find_extremes(status, coords, rows, *range_of(shape, (size_x, size_y, size_z))))
        with T.launch_thread("blockIdx.x", 1):
            T.launch_thread("threadIdx.x", 1)
            cells = T.alloc_local((1,), "int64")
            refuse = T.meta_var(lambda refusal, *arguments: report(status, refusal, *arguments))
            extremes.report(status, "coords")
            clear_plan(plan)
            site_box(spec, rows, plan, extremes.lowest, extremes.highest, (size_x, size_y, size_z), refuse)
            size[2] = rows * most_sites(geometry)
            choose(method, size[2], GRID_CELLS_PER_SITE, plan, size, cells, refuse)
            if plan.method == GRID:
                size[2] = T.min(size[2], size[0])
                size[1] = T.max(size[0], T.int64(1))
            else:
                size[1] = size[1] * 2
            if size[2] > MOST:
                refuse(RAISE_SITE_COUNT, size[2])
            if T.bool(touched_once(geometry)):  # nothing is looked up
                size[1] = T.int64(1)
            check_memory(status, size, left)
            if status[STATUS_CODE] != 0:
                empty_box(plan, size)
            size[0] = T.int64(1)
            size[2] = T.max(size[2], T.int64(1))

    if shape != "given":
        kernel = script.drop_parameters(kernel, "size_x", "size_y", "size_z")
    most, one = most_sites(geometry), LinearBound(0, 1)
    hashed, grid = LinearBound(4 * most, 2), grid_bound(method, most, GRID_CELLS_PER_SITE)
    keys = [one] if touched_once(geometry) else [hashed] if method == "hash" else [grid, hashed]
    return reporting(with_bounds(kernel, size=[[one], keys, [LinearBound(most), one]]))


@dataclass(frozen=True, eq=False)
class Touches:
    """The place at which every site was first touched, of a grid in `keys` [cells], of a hash in its second half."""

    plan: Plan
    keys: object

    @property
    def size(self):
        return self.keys.shape[0]

    @property
    def buckets(self):
        return self.keys.shape[0] // 2

    @inline
    def clear(self, place):
        self.keys[place] = T.int64(UNTOUCHED)
        if T.And(self.plan.method != GRID, place < self.buckets):
            self.keys[place] = T.int64(FREE)

    @inline
    def look(self, site, entry, bucket_of):
        """entry[0] = where the place of a site of the box is; `bucket_of`: `take_bucket` or `find_bucket`."""
        if self.plan.method == GRID:
            entry[0] = T.Cast("int64", self.plan.cell_of((site[0], site[1], site[2], site[3]), "int32"))
        else:
            bucket_of(self.keys, self.buckets, key_of((site[0], site[1], site[2], site[3])), entry)
            entry[0] = self.buckets + entry[0]


@cache
def find_sites(spec: FindSites, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `FindSites`."""
    geometry, once = spec.geometry, touched_once(spec.geometry)
    taps = geometry.taps

    @inline
    def touch_along(axis, k, site, there):
        offset: T.let = k[axis] * geometry.dilation[axis] - geometry.padding[axis]
        if geometry.transposed:
            site[axis + 1] = site[axis + 1] * geometry.stride[axis] + offset
        else:
            moved: T.let = site[axis + 1] - offset
            there[0] = T.And(there[0], T.floormod(moved, T.int32(geometry.stride[axis])) == 0)
            site[axis + 1] = divide(moved, geometry.stride[axis])

    @inline
    def set_site(coords, row, tap, plan, site, there):
        """site [4] = what a tap touches from a row; there[0] = whether it touches anything in the box"""
        k = T.alloc_local((3,), "int32")
        k[0] = tap // (geometry.kernel[1] * geometry.kernel[2])
        k[1] = tap // geometry.kernel[2] % geometry.kernel[1]
        k[2] = tap % geometry.kernel[2]
        site[0] = coords[row, 0]
        there[0] = T.bool(True)
        for axis in T.unroll(3):
            site[axis + 1] = coords[row, axis + 1]
        touch_along(0, k, site, there)
        touch_along(1, k, site, there)
        touch_along(2, k, site, there)
        there[0] = T.And(there[0], plan.contains((site[0], site[1], site[2], site[3])))

    def at_places(body, coords, rows):
        """Emit a launch: body(tap, row, lane), a warp to 32 rows that follow each other, also those behind the last."""

        @inline
        def emit(coords, rows):
            with T.launch_thread("blockIdx.x", blocks_for(rows, WARP)) as block:
                thread = T.launch_thread("threadIdx.x", THREADS)
                row: T.let = T.Cast("int64", block) * WARP + T.Cast("int64", thread % WARP)
                for i in range(-(-taps // WARPS)):
                    tap: T.let = i * WARPS + thread // WARP
                    if tap < taps:
                        body(tap, row, thread % WARP)

        emit(coords, rows)

    @inline
    def touch(coords, rows, touches, tap, row):
        site = T.alloc_local((4,), "int32")
        there = T.alloc_local((1,), "bool")
        entry = T.alloc_local((1,), "int64")
        if row < rows:
            set_site(coords, row, tap, touches.plan, site, there)
            if there[0]:
                touches.look(site, entry, take_bucket)
                T.evaluate(atomic_min(touches.keys, entry[0], T.Cast("int64", tap) * rows + row))

    @inline
    def mark(coords, rows, touches, words, row_words, tap, row, lane):
        site = T.alloc_local((4,), "int32")
        there = T.alloc_local((1,), "bool")
        entry = T.alloc_local((1,), "int64")
        word = T.alloc_local((1,), "int32")
        there[0] = T.bool(False)
        if row < rows:
            set_site(coords, row, tap, touches.plan, site, there)
            if not once:
                if there[0]:
                    touches.look(site, entry, find_bucket)
                    there[0] = touches.keys[entry[0]] == T.Cast("int64", tap) * rows + row
        word[0] = ballot(there[0])
        if lane == 0:
            words[T.Cast("int64", tap) * row_words + row // WARP] = word[0]

    @inline
    def write(coords, rows, plan, words, ranks, row_words, out, tap, row, lane):
        site = T.alloc_local((4,), "int32")
        there = T.alloc_local((1,), "bool")
        word = T.alloc_local((1,), "int32")
        if row < rows:
            word[0] = words[T.Cast("int64", tap) * row_words + row // WARP]
            if (T.shift_right(word[0], lane) & 1) != 0:
                set_site(coords, row, tap, plan, site, there)
                before: T.let = ranks[T.Cast("int64", tap) * row_words + row // WARP]
                rank: T.let = T.Cast("int64", before + count_bits_below(word[0], lane))
                for column in T.unroll(4):
                    out[rank, column] = site[column]

    @inline
    def note_count(count, value):
        count[0] = T.Cast("int64", value)

    def touch_all(coords, rows, touches):
        if not once:
            for_each(touches.size, touches.clear)
            at_places(lambda tap, row, lane: touch(coords, rows, touches, tap, row), coords, rows)

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, slots_: T.handle, keys_: T.handle, list_: T.handle, count_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("find_sites")})
        rows, num_slots, num_keys, most = T.int64(), T.int64(), T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = T.meta_var(match_plan(plan_))
        match_buffer(slots_, (num_slots,), "int32")
        touches = T.meta_var(Touches(plan, named("keys", match_buffer(keys_, (num_keys,), "int64"))))
        sites = match_buffer(list_, (most, 4), "int32")
        count = match_buffer(count_, (1,), "int64")
        row_words = T.meta_var(blocks_for(rows, WARP))  # of bits, for each tap
        words = T.alloc_buffer((taps * row_words,), "int32")
        ranks = T.alloc_buffer((taps * row_words + 1,), "int32")
        touch_all(coords, rows, touches)
        at_places(lambda tap, row, lane: mark(coords, rows, touches, words, row_words, tap, row, lane), coords, rows)
        exclusive_scan(lambda place: count_bits(words[place]), ranks, taps * row_words)
        at_places(
            lambda tap, row, lane: write(coords, rows, plan, words, ranks, row_words, sites, tap, row, lane), coords, rows
        )
        for_each(T.int64(1), lambda place: note_count(count, ranks[taps * row_words]))

    return stating(with_bounds(kernel, count=[[LinearBound(most_sites(geometry))]]), SCAN_REGISTERS)


@cache
def copy_sites(spec: CopySites, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `CopySites`."""

    @inline
    def note_batch(sites, batches, row):
        batches[row] = sites[row, 0]

    @inline
    def copy(sites, order, out, place):
        for column in T.unroll(4):
            out[place, column] = sites[T.Cast("int64", order[place]), column]

    @script.prim_func(s_tir=True)
    def kernel(list_: T.handle, plan_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("copy_sites")})
        most, rows = T.int64(), T.int64()
        sites = match_buffer(list_, (most, 4), "int32")
        match_buffer(plan_, (PLAN_SIZE,), "int64")
        out = match_buffer(out_, (rows, 4), "int32")
        batches = T.alloc_buffer((rows,), "int32")
        ascending = T.alloc_buffer((rows,), "int32")
        order = T.alloc_buffer((rows,), "int32")
        for_each(rows, lambda row: note_batch(sites, batches, row))
        sort_pairs(batches, None, ascending, order, rows, BATCH_BITS)
        for_each(rows, lambda place: copy(sites, order, out, place))

    return stating(kernel, SORT_REGISTERS)
