"""Output sites of strided and transposed sparse convolutions: plan, find, copy."""

from functools import cache
from math import prod

import tvm
from tvm.script import tirx as T

from .. import script
from ..bounds import LinearBound, with_bounds
from ..buffers import match_buffer
from ..coordinates import choose, index_bounds, key_of, match_plan
from ..granting import check_memory
from ..guards import RAISE_SITE_COUNT
from ..integers import MOST, divide
from ..script import inline
from ..site_box import range_of, site_box
from ..spec.coordinate_index import BATCH_LIMIT, GRID, PLAN_SIZE
from ..spec.sites import CopySites, FindSites, PlanSites, most_sites, touched_once
from .coordinate_index import SPARE, begin_plan, fill, match_index
from .guards import refuse
from .isa import Isa
from .unique import counts_to_starts

GRID_CELLS_PER_SITE = 24  # of output sites that may be: at most twice the bytes of a hash, which has room for all of them
CLASSES_MOST = 64  # residue classes by which rows are sorted


@cache
def plan_sites(spec: PlanSites, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `PlanSites`."""
    geometry, shape, method = spec.geometry, spec.shape, spec.method

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, size_x: T.int64, size_y: T.int64, size_z: T.int64, plan_: T.handle, size_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "plan_sites"})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        plan = T.meta_var(match_plan(plan_))
        size = match_buffer(size_, (3,), "int64")
        lowest = T.alloc_buffer((4,), "int32")
        highest = T.alloc_buffer((4,), "int32")
        cells = T.alloc_buffer((1,), "int64")
        begin_plan(plan, coords, rows, lowest, highest, *range_of(shape, (size_x, size_y, size_z)))
        site_box(spec, rows, plan, lambda axis: lowest[axis], lambda axis: highest[axis], (size_x, size_y, size_z), refuse)
        size[2] = rows * most_sites(geometry)
        choose(method, size[2], GRID_CELLS_PER_SITE, plan, size, cells, refuse, SPARE)
        if plan.method == GRID:
            size[2] = T.min(size[2], size[0] - SPARE)
        if T.bool(touched_once(geometry)):  # nothing is looked up
            size[0] = T.int64(1)
            size[1] = T.int64(1)
        if size[2] > MOST:
            T.evaluate(T.call_packed(RAISE_SITE_COUNT, size[2]))
        size[2] = T.max(size[2], T.int64(1))
        check_memory("strided_map", (("int32", (size[2], T.int64(4))), ("int32", (size[0],)), ("int64", (size[1],))))

    if shape != "given":
        kernel = script.drop_parameters(kernel, "size_x", "size_y", "size_z")
    most = most_sites(geometry)
    one = [LinearBound(0, 1)]
    index = [one, one] if touched_once(geometry) else index_bounds(method, most, GRID_CELLS_PER_SITE, spare=SPARE)
    return with_bounds(kernel, size=[*index, [LinearBound(most), *one]])


@cache
def find_sites(spec: FindSites, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `FindSites`. One thread walks taps and rows: the order is that of the walk.

    A tap of a strided convolution touches sites from the rows of one residue class alone: rows are sorted by class first.
    """
    geometry = spec.geometry
    stride, once = geometry.stride, touched_once(geometry)
    below = (geometry.kernel[1] * geometry.kernel[2], geometry.kernel[2], 1)
    classes = 1 if geometry.transposed else prod(stride)
    by_class = 1 < classes <= CLASSES_MOST

    def offset(tap, axis):
        """dilation * k - padding of a tap along an axis."""
        k = tap // below[axis] % geometry.kernel[axis]
        return k * geometry.dilation[axis] - geometry.padding[axis]

    def site(coordinate, tap_offset, axis):
        """(site, whether there is one) along an axis for an input coordinate."""
        if geometry.transposed:
            return coordinate * stride[axis] + tap_offset, T.bool(True)
        return divide(coordinate - tap_offset, stride[axis]), T.floormod(coordinate - tap_offset, T.int32(stride[axis])) == 0

    def class_of(values):
        """The residue class of three coordinates, or of the offsets of a tap."""
        number = T.int32(0)
        for value, s in zip(values, stride, strict=True):
            number = number * s + T.floormod(value, T.int32(s))
        return number

    @inline
    def add(sites, count, batch, x, y, z):
        sites[count[0], 0] = batch
        sites[count[0], 1] = x
        sites[count[0], 2] = y
        sites[count[0], 3] = z
        count[0] = count[0] + 1

    @inline
    def touch(index, sites, count, found, batch, x, y, z):
        """Note a site of the box, unless it is there."""
        if once:
            add(sites, count, batch, x, y, z)
        else:
            if index.plan.method == GRID:
                cell: T.let = index.plan.cell_of((batch, x, y, z))
                found[0] = index.slots[cell]
                if found[0] < 0:
                    index.slots[cell] = T.Cast("int32", count[0])
                    found[0] = T.Cast("int32", count[0])
            else:
                index.table.insert(key_of((batch, x, y, z)), T.Cast("int32", count[0]), found)
            if T.Cast("int64", found[0]) == count[0]:
                add(sites, count, batch, x, y, z)

    @inline
    def touch_from(coords, row, tap, index, sites, count, found):
        """The site that a tap touches from a row, if it lies in the box."""
        x: T.let = site(coords[row, 1], offset(tap, 0), 0)[0]
        y: T.let = site(coords[row, 2], offset(tap, 1), 1)[0]
        z: T.let = site(coords[row, 3], offset(tap, 2), 2)[0]
        if index.plan.contains((coords[row, 0], x, y, z)):
            touch(index, sites, count, found, coords[row, 0], x, y, z)

    @inline
    def sort_by_class(coords, rows, order, ends):
        """order [rows]: the rows of each class, ascending; ends[c]: where those of class c end."""
        for c in range(classes):
            ends[c] = T.int32(0)
        for row in range(rows):
            number: T.let = class_of((coords[row, 1], coords[row, 2], coords[row, 3]))
            ends[number] = ends[number] + 1
        counts_to_starts(ends, classes)
        for row in range(rows):
            number: T.let = class_of((coords[row, 1], coords[row, 2], coords[row, 3]))
            order[ends[number]] = T.Cast("int32", row)
            ends[number] = ends[number] + 1

    @inline
    def walk(coords, rows, index, sites, count, found):
        if by_class:
            order = T.alloc_buffer((rows,), "int32")
            ends = T.alloc_buffer((classes,), "int32")
            sort_by_class(coords, rows, order, ends)
            for tap in range(T.int32(geometry.taps)):
                number: T.let = class_of((offset(tap, 0), offset(tap, 1), offset(tap, 2)))
                begin: T.let = T.if_then_else(number > 0, ends[T.max(number - 1, 0)], T.int32(0))
                for i in range(ends[number] - begin):
                    touch_from(coords, T.Cast("int64", order[begin + i]), tap, index, sites, count, found)
        else:
            for tap in range(T.int32(geometry.taps)):
                for row in range(rows):
                    exact: T.let = (
                        site(coords[row, 1], offset(tap, 0), 0)[1]
                        & site(coords[row, 2], offset(tap, 1), 1)[1]
                        & site(coords[row, 3], offset(tap, 2), 2)[1]
                    )
                    if exact:
                        touch_from(coords, row, tap, index, sites, count, found)

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, slots_: T.handle, keys_: T.handle, list_: T.handle, count_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "find_sites"})
        rows, most = T.int64(), T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        index = T.meta_var(match_index(plan_, slots_, keys_))
        sites = match_buffer(list_, (most, 4), "int32")
        count = match_buffer(count_, (1,), "int64")
        found = T.alloc_buffer((1,), "int32")
        fill(index.slots, index.num_slots, T.int32(-1))
        fill(index.table.keys, index.table.buckets, T.int64(-1))
        count[0] = T.int64(0)
        walk(coords, rows, index, sites, count, found)

    return with_bounds(kernel, count=[[LinearBound(most_sites(geometry))]])


@cache
def copy_sites(spec: CopySites, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `CopySites`."""

    @script.prim_func(s_tir=True)
    def kernel(list_: T.handle, plan_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "copy_sites"})
        most, rows = T.int64(), T.int64()
        sites = match_buffer(list_, (most, 4), "int32")
        plan = match_buffer(plan_, (PLAN_SIZE,), "int64")
        out = match_buffer(out_, (rows, 4), "int32")
        starts = T.alloc_buffer((BATCH_LIMIT,), "int64")
        for batch in range(BATCH_LIMIT):
            starts[batch] = T.int64(0)
        for row in range(rows):
            starts[T.Cast("int64", sites[row, 0])] = starts[T.Cast("int64", sites[row, 0])] + 1
        counts_to_starts(starts, BATCH_LIMIT)
        for row in range(rows):
            target: T.let = starts[T.Cast("int64", sites[row, 0])]
            starts[T.Cast("int64", sites[row, 0])] = target + 1
            for column in T.unroll(4):
                out[target, column] = sites[row, column]

    return kernel
