"""From coordinates to row numbers on a device: a dense grid where the bounding box is small, an open-addressing hash otherwise.

An index is three arrays, as on a CPU but without empty cells around the box:

    plan   int64 [PLAN_SIZE]  method, origin and extent of the bounding box
    slots  int32 [S]          rows, or -1, of the cells of a grid; of the buckets of a hash, S = 4 T places
    keys   int64 [T]          hash: key of each bucket, or -1 where it is free; grid: unused, T = 1

Threads take buckets by compare-and-swap, and of the rows of one coordinate the least stays, whatever their order. In which
bucket a key lies depends on it, but nothing that is found by the key does.
"""

from dataclasses import dataclass
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..bounds import with_bounds
from ..buffers import match_buffer, named
from ..coordinates import (
    BUCKET,
    BUCKET_BITS,
    GRID_CELLS_PER_ROW,
    Plan,
    choose,
    coordinate,
    home_bucket,
    index_bounds,
    key_of,
    match_plan,
)
from ..guards import RAISE_DUPLICATE
from ..integers import divide
from ..script import inline
from ..sharing import shared
from ..spec.coordinate_index import (
    GRID,
    PLAN_EXTENT,
    PLAN_ORIGIN,
    PLAN_ROWS,
    PLAN_SIZE,
    BuildIndex,
    Lookup,
    PlanIndex,
)
from .atomics import atomic_cas, atomic_least_row
from .extremes import find_extremes
from .gpu import Gpu, kernel_name
from .guards import match_status, refuse_first, report, reporting
from .launch import for_each

FREE = -1  # a key that no coordinate has


@inline
def take_bucket(keys, buckets, bucket_key, bucket):
    """bucket[0] = where `bucket_key` lies in the first `buckets` of `keys`, int64 [1] of a thread; its own from now on."""
    held = T.alloc_local((1,), "int64")
    held[0] = buckets  # else TVM takes an expression out of the kernel, as an unsigned argument, which no launch may have
    bucket[0] = home_bucket(bucket_key, held[0])
    held[0] = atomic_cas(keys, bucket[0], T.int64(FREE), bucket_key)
    while T.And(held[0] != FREE, held[0] != bucket_key):
        bucket[0] = T.if_then_else(bucket[0] + 1 == buckets, T.int64(0), bucket[0] + 1)
        held[0] = atomic_cas(keys, bucket[0], T.int64(FREE), bucket_key)


@inline
def find_bucket(keys, buckets, bucket_key, bucket):
    """As `take_bucket`, in a launch that takes none: the bucket of `bucket_key`, or the free one where it belongs."""
    held = T.alloc_local((1,), "int64")
    held[0] = buckets  # as above
    bucket[0] = home_bucket(bucket_key, held[0])
    held[0] = keys[bucket[0]]
    while T.And(held[0] != FREE, held[0] != bucket_key):
        bucket[0] = T.if_then_else(bucket[0] + 1 == buckets, T.int64(0), bucket[0] + 1)
        held[0] = keys[bucket[0]]


@dataclass(frozen=True, eq=False)
class Index:
    """The buffers of an index."""

    plan: Plan
    slots: object
    keys: object

    @property
    def buckets(self):
        return self.keys.shape[0]

    @inline
    def insert(self, coordinate, row, place):
        """place[0] = the slot of a coordinate of the box, int64 [1] of a thread, which then holds `row` or one before it."""
        if self.plan.method == GRID:
            place[0] = T.Cast("int64", self.plan.cell_of(coordinate, "int32"))
        else:
            key: T.let = key_of(coordinate)
            take_bucket(self.keys, self.buckets, key >> BUCKET_BITS, place)
            place[0] = place[0] * BUCKET + (key & (BUCKET - 1))
        T.evaluate(atomic_least_row(self.slots, place[0], row))

    @inline
    def find_key(self, key, found):
        """found[0] = the row of a hash's key, or -1 (the places of a free bucket hold -1)."""
        bucket = T.alloc_local((1,), "int64")
        find_bucket(self.keys, self.buckets, key >> BUCKET_BITS, bucket)
        found[0] = self.slots[bucket[0] * BUCKET + (key & (BUCKET - 1))]

    @inline
    def find(self, coordinate, found):
        """found[0] = the row of any coordinate, or -1. Far outside of the box no key could be formed."""
        found[0] = T.int32(-1)
        if self.plan.contains(coordinate):
            if self.plan.method == GRID:
                found[0] = self.slots[self.plan.cell_of(coordinate, "int32")]
            else:
                self.find_key(key_of(coordinate), found)


def match_index(plan, slots, keys) -> Index:
    """The `Index` in three of a kernel's parameters, for `T.meta_var`."""
    num_slots, num_keys = tvm.tirx.Var("num_slots", "int64"), tvm.tirx.Var("num_keys", "int64")
    return Index(
        match_plan(plan),
        named("slots", match_buffer(slots, (num_slots,), "int32")),
        named("keys", match_buffer(keys, (num_keys,), "int64")),
    )


def clear_plan(plan) -> None:
    """Emit, for one thread of a kernel: all entries of `plan` are 0."""
    for entry in range(PLAN_SIZE):
        T.buffer_store(plan.entries, T.int64(0), [entry])


def plan_box(plan, extremes, factors=(1, 1, 1, 1)) -> None:
    """Emit, for one thread of a kernel: an empty plan with the box of coordinates that are divided by `factors`."""
    clear_plan(plan)

    @inline
    def along(axis, plan, extremes):
        plan.entries[PLAN_ORIGIN + axis] = T.Cast("int64", divide(extremes.lowest(axis), factors[axis]))
        plan.entries[PLAN_EXTENT + axis] = (
            T.Cast("int64", divide(extremes.highest(axis), factors[axis])) - plan.origin(axis) + 1
        )

    for axis in range(4):
        along(axis, plan, extremes)


@cache
def plan_index(spec: PlanIndex, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `PlanIndex`. ValueError for `method="grid"` when the box has more cells than a grid may."""
    method, low, high, argument = spec.method, spec.low, spec.high, spec.argument

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, status_: T.handle, plan_: T.handle, size_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("plan_index")})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        status = T.meta_var(match_status(status_))
        plan = T.meta_var(match_plan(plan_))
        size = match_buffer(size_, (2,), "int64")
        extremes = T.meta_var(find_extremes(status, coords, rows, low, high))
        with T.launch_thread("blockIdx.x", 1):
            T.launch_thread("threadIdx.x", 1)
            cells = T.alloc_local((1,), "int64")
            extremes.report(status, argument)
            plan_box(plan, extremes)
            plan.entries[PLAN_ROWS] = rows
            refuse = T.meta_var(lambda refusal, *arguments: report(status, refusal, *arguments))
            choose(method, rows, GRID_CELLS_PER_ROW, plan, size, cells, refuse)

    return reporting(shared(with_bounds(kernel, size=index_bounds(method))))


@cache
def build_index(spec: BuildIndex, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `BuildIndex`."""
    argument = spec.argument

    @inline
    def clear(index, num_slots, place):
        if place < num_slots:
            index.slots[place] = T.int32(-1)
        if place < index.buckets:
            index.keys[place] = T.int64(FREE)

    @inline
    def insert_row(coords, index, places, row):
        place = T.alloc_local((1,), "int64")
        index.insert(coordinate(coords, row), T.Cast("int32", row), place)
        places[row] = place[0]

    @script.prim_func(s_tir=True)
    def kernel(coords_: T.handle, plan_: T.handle, status_: T.handle, slots_: T.handle, keys_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("build_index")})
        rows = T.int64()
        coords = match_buffer(coords_, (rows, 4), "int32")
        status = T.meta_var(match_status(status_))
        index = T.meta_var(match_index(plan_, slots_, keys_))
        places = T.alloc_buffer((rows,), "int64")  # the slot of every row
        slots = T.meta_var(index.slots)
        num_slots = T.meta_var(slots.shape[0])
        for_each(T.max(num_slots, index.buckets), lambda place: clear(index, num_slots, place))
        for_each(rows, lambda row: insert_row(coords, index, places, row))
        refuse_first(
            status,
            rows,
            lambda row: T.Cast("int64", slots[places[row]]) != row,
            RAISE_DUPLICATE,
            lambda row: (row, slots[places[row]], argument),
        )

    return reporting(shared(kernel))


@cache
def lookup(spec: Lookup, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Lookup`."""

    @inline
    def look_up(queries, index, rows, query):
        found = T.alloc_local((1,), "int32")
        index.find(coordinate(queries, query), found)
        rows[query] = found[0]

    @script.prim_func(s_tir=True)
    def kernel(queries_: T.handle, plan_: T.handle, slots_: T.handle, keys_: T.handle, rows_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("lookup")})
        count = T.int64()
        queries = match_buffer(queries_, (count, 4), "int32")
        index = T.meta_var(match_index(plan_, slots_, keys_))
        rows = match_buffer(rows_, (count,), "int32")
        for_each(count, lambda query: look_up(queries, index, rows, query))

    return kernel
