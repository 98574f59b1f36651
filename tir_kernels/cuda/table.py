"""The kernels for CUDA devices: for every family its implementations, best first."""

from collections.abc import Callable
from dataclasses import replace

import tvm

from ..implementation import Implementation, Kernel, Target
from ..layout import MapLayout, WeightLayout
from ..spec import Spec
from ..spec.linear import TF32
from . import (
    attention,
    batch_offsets,
    channel_affine,
    channel_layer_norm,
    checksum,
    conv,
    conv_transpose,
    coordinate_index,
    dense,
    dense_group_norm,
    elementwise,
    flatnonzero,
    gather_rows,
    group_norm,
    implicit_gemm,
    interpolate,
    kernel_map,
    layer_norm,
    linear,
    memory,
    modulated_add,
    narrow_conv,
    pool,
    quantize,
    resize_bilinear,
    rms_norm_heads,
    segment_pool,
    serialize,
    sites,
    softmax,
    subdivide,
    tensor_core,
    trilinear,
    union,
    unique,
    upsampled_conv,
    weight_gradient,
    windows,
)
from .gpu import MULTIPLIES, Gpu, on_device
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
        if getattr(spec, "products", "float") not in ("float", TF32):
            return f"products: expected 'float' or 'tf32', given {spec.products!r}"
        return gpu.problem() or (refuses(spec, gpu) if refuses else None)

    def make(spec: Spec, target: Target) -> Kernel:
        gpu = Gpu.of(target)
        own = shared(spec, gpu) if shared else spec
        function, layout = on_device(build(own, gpu)), weight(spec, gpu) if weight else None
        if hasattr(own, "products"):
            function = function.with_attr(MULTIPLIES, spec.dtype if own.products == "float" else own.products)
        return Kernel(name, function, layout and replace(layout, pack=on_device(layout.pack)), map_layout)

    return Implementation(name, accepts, make)


KERNELS: dict[str, tuple[Implementation, ...]] = {
    "activation": (on_cuda(elementwise.elementwise),),
    "add_taps": (on_cuda(upsampled_conv.add_taps, map_layout=NEIGHBOURS),),
    "attention": (on_cuda(attention.attention),),
    "batch_offsets": (on_cuda(batch_offsets.batch_offsets),),
    "build_index": (on_cuda(coordinate_index.build_index),),
    "channel_affine": (on_cuda(channel_affine.channel_affine),),
    "channel_layer_norm": (on_cuda(channel_layer_norm.channel_layer_norm),),
    "conv3d": (on_cuda(conv.conv3d, shared=tensor_core.shared),),
    "conv_transpose3d": (on_cuda(conv_transpose.conv_transpose3d, shared=tensor_core.shared),),
    "checksum": (on_cuda(checksum.checksum),),
    "copy_sites": (on_cuda(sites.copy_sites),),
    "count_cuts": (on_cuda(serialize.count_cuts),),
    "count_nonzero": (on_cuda(flatnonzero.count_nonzero),),
    "cut_sequence": (on_cuda(serialize.cut_sequence),),
    "dense_group_norm": (on_cuda(dense_group_norm.dense_group_norm),),
    "fill_nonzero": (on_cuda(flatnonzero.fill_nonzero),),
    "fill_unique": (on_cuda(unique.fill_unique),),
    "find_sites": (on_cuda(sites.find_sites),),
    "from_dense": (on_cuda(dense.from_dense),),
    "gather_rows": (on_cuda(gather_rows.gather_rows),),
    "grant_memory": (on_cuda(memory.grant_memory),),
    "group_norm": (on_cuda(group_norm.group_norm),),
    "group_rows": (on_cuda(windows.group_rows),),
    "interpolate": (on_cuda(interpolate.interpolate),),
    "inverse_map": (on_cuda(kernel_map.inverse_map, map_layout=NEIGHBOURS),),
    "layer_norm": (on_cuda(layer_norm.layer_norm),),
    "linear": (on_cuda(linear.linear, shared=linear.shared),),
    "lookup": (on_cuda(coordinate_index.lookup),),
    "modulated_add": (on_cuda(modulated_add.modulated_add),),
    "plan_index": (on_cuda(coordinate_index.plan_index),),
    "plan_sites": (on_cuda(sites.plan_sites),),
    "plan_unique": (on_cuda(unique.plan_unique),),
    "pool": (on_cuda(pool.pool, map_layout=NEIGHBOURS),),
    "probe_map": (on_cuda(kernel_map.probe_map, map_layout=NEIGHBOURS),),
    "quantize": (on_cuda(quantize.quantize),),
    "rank_unique": (on_cuda(unique.rank_unique),),
    "resize_bilinear": (on_cuda(resize_bilinear.resize_bilinear),),
    "rms_norm_heads": (on_cuda(rms_norm_heads.rms_norm_heads),),
    "segment_pool": (on_cuda(segment_pool.segment_pool),),
    "serial_keys": (on_cuda(serialize.serial_keys),),
    "serialize": (on_cuda(serialize.serialize),),
    "set_rows": (on_cuda(union.set_rows),),
    "softmax": (on_cuda(softmax.softmax),),
    "sparse_conv": (
        on_cuda(narrow_conv.narrow_conv, refuses=narrow_conv.refuses, map_layout=NEIGHBOURS, shared=narrow_conv.shared),
        on_cuda(implicit_gemm.implicit_gemm, map_layout=NEIGHBOURS, shared=implicit_gemm.shared),
    ),
    "sparse_conv_weight_gradient": (on_cuda(weight_gradient.weight_gradient, map_layout=NEIGHBOURS),),
    "subdivide": (on_cuda(subdivide.subdivide),),
    "submanifold_map": (on_cuda(kernel_map.submanifold_map, map_layout=NEIGHBOURS),),
    "to_dense": (on_cuda(dense.to_dense),),
    "trilinear": (on_cuda(trilinear.trilinear),),
    "window_coords": (on_cuda(windows.window_coords),),
}
