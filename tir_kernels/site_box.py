"""The box that the output sites of a convolution lie in, from that of its input, for any target."""

from collections.abc import Callable, Sequence

from tvm.script import tirx as T

from .coordinates import Plan
from .guards import RAISE_SITES
from .integers import MOST, last_of
from .script import inline
from .spec.coordinate_index import BATCH_LIMIT, COORDINATE_LIMIT, DEFAULT_HIGH, DEFAULT_LOW, PLAN_EXTENT, PLAN_ORIGIN
from .spec.sites import PlanSites, extent_along


def range_of(shape: str | None, extents: Sequence) -> tuple[tuple, tuple]:
    """The least and the largest batch, x, y, z of inputs: `shape` as in `PlanSites`, int64 extents where it is given."""
    low = DEFAULT_LOW if shape is None else (0, 0, 0, 0)
    if shape != "given":
        return low, DEFAULT_HIGH
    return low, (BATCH_LIMIT - 1, *(last_of(n, COORDINATE_LIMIT - 1) for n in extents))


def site_box(
    spec: PlanSites, rows, plan: Plan, lowest: Callable, highest: Callable, extents: Sequence, refuse: Callable
) -> None:
    """Emit: origin and extent in `plan`, which holds zeros, of the sites of `rows` inputs.

    lowest(column), highest(column): the extremes of the inputs, int32 expressions; `extents` as in `range_of`;
    refuse(refusal, *arguments) emits what raises or reports.
    """
    geometry, shape = spec.geometry, spec.shape

    def last_site(axis):
        """Last site of a bounded grid along an axis."""
        n = extents[axis] if shape == "given" else T.Cast("int64", highest(axis + 1)) + 1
        return extent_along(T.min(n, T.int64(MOST)), geometry, axis, T.min) - 1  # so that no product wraps

    @inline
    def set_range(axis, first, last, plan):
        if shape is None:
            plan.entries[PLAN_ORIGIN + axis + 1] = first
            plan.entries[PLAN_EXTENT + axis + 1] = T.max(last - first + 1, T.int64(0))
        else:
            plan.entries[PLAN_ORIGIN + axis + 1] = T.max(first, T.int64(0))
            plan.entries[PLAN_EXTENT + axis + 1] = T.max(T.min(last, last_site(axis)) - plan.origin(axis + 1) + 1, T.int64(0))
        if T.Or(
            plan.origin(axis + 1) < -COORDINATE_LIMIT,
            plan.origin(axis + 1) + plan.extent(axis + 1) > COORDINATE_LIMIT,
        ):
            refuse(RAISE_SITES, T.int32(axis + 1), first, last)

    @inline
    def site_range(axis, first_tap, last_tap, stride, plan):
        low_input: T.let = T.Cast("int64", lowest(axis + 1))
        high_input: T.let = T.Cast("int64", highest(axis + 1))
        if geometry.transposed:
            set_range(axis, low_input * stride + first_tap, high_input * stride + last_tap, plan)
        else:
            set_range(
                axis,
                T.floordiv(low_input - last_tap + (stride - 1), T.int64(stride)),
                T.floordiv(high_input - first_tap, T.int64(stride)),
                plan,
            )

    def all_axes(plan):
        for axis, (k, d, p) in enumerate(zip(geometry.kernel, geometry.dilation, geometry.padding, strict=True)):
            site_range(axis, -p, d * (k - 1) - p, geometry.stride[axis], plan)

    @inline
    def emit(plan):
        plan.entries[PLAN_ORIGIN] = T.Cast("int64", lowest(0))
        plan.entries[PLAN_EXTENT] = T.Cast("int64", highest(0) - lowest(0) + 1)
        if rows > 0:
            all_axes(plan)

    emit(plan)
