"""The kernels for CUDA devices: for every family its implementations, best first."""

from collections.abc import Callable
from dataclasses import replace

import tvm

from ..implementation import Implementation, Kernel, Target
from ..layout import MapLayout, WeightLayout
from ..spec import Spec
from . import (
    attention,
    channel_affine,
    channel_layer_norm,
    dense_group_norm,
    elementwise,
    gather_rows,
    group_norm,
    layer_norm,
    modulated_add,
    rms_norm_heads,
    softmax,
)
from .gpu import Gpu, on_device


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
    "attention": (on_cuda(attention.attention),),
    "channel_affine": (on_cuda(channel_affine.channel_affine),),
    "channel_layer_norm": (on_cuda(channel_layer_norm.channel_layer_norm),),
    "dense_group_norm": (on_cuda(dense_group_norm.dense_group_norm),),
    "gather_rows": (on_cuda(gather_rows.gather_rows),),
    "group_norm": (on_cuda(group_norm.group_norm),),
    "layer_norm": (on_cuda(layer_norm.layer_norm),),
    "modulated_add": (on_cuda(modulated_add.modulated_add),),
    "rms_norm_heads": (on_cuda(rms_norm_heads.rms_norm_heads),),
    "softmax": (on_cuda(softmax.softmax),),
}
