"""The kernels for CUDA devices: for every family its implementations, best first."""

from collections.abc import Callable
from dataclasses import replace

import tvm

from ..implementation import Implementation, Kernel, Target
from ..layout import MapLayout, WeightLayout
from ..spec import Spec
from . import conv, elementwise, gather_rows, implicit_gemm, linear, narrow_conv, upsampled_conv, weight_gradient
from .gpu import Gpu, on_device
from .neighbour_table import TABLE


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
    "add_taps": (on_cuda(upsampled_conv.add_taps, map_layout=TABLE),),
    "conv3d": (on_cuda(conv.conv3d),),
    "gather_rows": (on_cuda(gather_rows.gather_rows),),
    "linear": (on_cuda(linear.linear, shared=linear.shared),),
    "sparse_conv": (
        on_cuda(narrow_conv.narrow_conv, refuses=narrow_conv.refuses, map_layout=TABLE, shared=narrow_conv.shared),
        on_cuda(implicit_gemm.implicit_gemm, map_layout=TABLE, shared=implicit_gemm.shared),
    ),
    "sparse_conv_weight_gradient": (on_cuda(weight_gradient.weight_gradient, map_layout=TABLE),),
}
