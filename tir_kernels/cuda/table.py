"""The kernels for CUDA devices: for every family its implementations, best first."""

from collections.abc import Callable
from dataclasses import replace

import tvm

from ..implementation import Implementation, Kernel, Target
from ..layout import MapLayout, WeightLayout
from ..spec import Spec
from . import (
    batch_offsets,
    coordinate_index,
    dense,
    elementwise,
    flatnonzero,
    gather_rows,
    interpolate,
    kernel_map,
    pool,
    quantize,
    segment_pool,
    serialize,
    subdivide,
    trilinear,
    union,
    unique,
    windows,
)
from .gpu import Gpu, on_device
from .neighbour_table import NEIGHBOURS


def on_cuda(
    build: Callable[[Spec, Gpu], tvm.tirx.PrimFunc],
    name: str | None = None,
    *,
    refuses: Callable[[Spec, Gpu], str | None] | None = None,
    weight: Callable[[Spec, Gpu], WeightLayout] | None = None,
    map_layout: MapLayout | None = None,
    shared: Callable[[Spec, Gpu], Spec] | None = None,
) -> Implementation:
    """A row for CUDA devices; options as in `on_cpu`. Without `weight` the kernel reads weights as they are given."""
    name = name or build.__name__

    def accepts(spec: Spec, target: Target) -> str | None:
        if target.kind.name != "cuda":
            return f"expected a target of kind 'cuda', given kind {target.kind.name!r}"
        gpu = Gpu.of(target)
        if getattr(spec, "products", "float") != "float":
            return f"products: expected 'float', given {spec.products!r}"
        return gpu.problem() or (refuses(spec, gpu) if refuses else None)

    def make(spec: Spec, target: Target) -> Kernel:
        gpu = Gpu.of(target)
        function, layout = build(shared(spec, gpu) if shared else spec, gpu), weight(spec, gpu) if weight else None
        return Kernel(name, on_device(function), layout and replace(layout, pack=on_device(layout.pack)), map_layout)

    return Implementation(name, accepts, make)


KERNELS: dict[str, tuple[Implementation, ...]] = {
    "activation": (on_cuda(elementwise.elementwise),),
    "batch_offsets": (on_cuda(batch_offsets.batch_offsets),),
    "build_index": (on_cuda(coordinate_index.build_index),),
    "count_cuts": (on_cuda(serialize.count_cuts),),
    "count_nonzero": (on_cuda(flatnonzero.count_nonzero),),
    "cut_sequence": (on_cuda(serialize.cut_sequence),),
    "fill_nonzero": (on_cuda(flatnonzero.fill_nonzero),),
    "fill_unique": (on_cuda(unique.fill_unique),),
    "from_dense": (on_cuda(dense.from_dense),),
    "gather_rows": (on_cuda(gather_rows.gather_rows),),
    "group_rows": (on_cuda(windows.group_rows),),
    "interpolate": (on_cuda(interpolate.interpolate),),
    "inverse_map": (on_cuda(kernel_map.inverse_map, map_layout=NEIGHBOURS),),
    "lookup": (on_cuda(coordinate_index.lookup),),
    "plan_index": (on_cuda(coordinate_index.plan_index),),
    "plan_unique": (on_cuda(unique.plan_unique),),
    "pool": (on_cuda(pool.pool, map_layout=NEIGHBOURS),),
    "probe_map": (on_cuda(kernel_map.probe_map, map_layout=NEIGHBOURS),),
    "quantize": (on_cuda(quantize.quantize),),
    "rank_unique": (on_cuda(unique.rank_unique),),
    "segment_pool": (on_cuda(segment_pool.segment_pool),),
    "serial_keys": (on_cuda(serialize.serial_keys),),
    "serialize": (on_cuda(serialize.serialize),),
    "set_rows": (on_cuda(union.set_rows),),
    "subdivide": (on_cuda(subdivide.subdivide),),
    "submanifold_map": (on_cuda(kernel_map.submanifold_map, map_layout=NEIGHBOURS),),
    "to_dense": (on_cuda(dense.to_dense),),
    "trilinear": (on_cuda(trilinear.trilinear),),
    "window_coords": (on_cuda(windows.window_coords),),
}
