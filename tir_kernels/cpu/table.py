"""The kernels for CPUs: for every family its implementations, best first."""

from collections.abc import Callable
from dataclasses import replace

import tvm

from ..implementation import Implementation, Kernel, Target
from ..layout import MapLayout, PairsByBlock, WeightLayout
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
    depthwise_conv,
    depthwise_weight_gradient,
    elementwise,
    flatnonzero,
    gather_gemm,
    gather_rows,
    group_norm,
    int8_gather_gemm,
    int8_linear,
    interpolate,
    kernel_map,
    layer_norm,
    linear,
    memory,
    modulated_add,
    pool,
    quantize,
    resize_bilinear,
    rms_norm_heads,
    segment_pool,
    serialize,
    sites,
    softmax,
    subdivide,
    trilinear,
    union,
    unique,
    upsampled_conv,
    weight_gradient,
    windows,
    winograd,
)
from .float16 import spelled_out
from .isa import INTEGER, Isa


def on_cpu(
    build: Callable[[Spec, Isa], tvm.tirx.PrimFunc],
    name: str | None = None,
    *,
    dot: bool | None = None,
    integer: str | None = None,
    refuses: Callable[[Spec, Isa], str | None] | None = None,
    weight: Callable[[Spec, Isa], WeightLayout] | None = None,
    map_layout: MapLayout | None = None,
    shared: Callable[[Spec, Isa], Spec] | None = None,
) -> Implementation:
    """A row for CPUs.

    `dot`: True for the kernel that multiplies pairs of bfloat16, False for the one that does without, None where there is no
    difference. `integer`: the instruction that adds the products of a kernel for descriptions that ask for integer `products`.
    `refuses`: why an instruction set does not serve. `shared`: one description for all that have the same kernel.
    """
    name = name or build.__name__

    def isa_of(target: Target) -> Isa:
        isa = Isa.of(target)
        integers = {"integer": (integer,)} if integer in isa.integer else {"integer": (), "emulate_integer": False}
        return replace(isa, **integers, **({"bf16_dot": False, "emulate_dot": False} if dot is False else {}))

    def accepts(spec: Spec, target: Target) -> str | None:
        if target.kind.name != "llvm":
            return f"expected a CPU target of kind 'llvm', given kind {target.kind.name!r}"
        isa = isa_of(target)
        if dot and spec.dtype != "bfloat16":
            return f"dtype: expected bfloat16, given {spec.dtype}"
        if dot and not isa.bf16_dot:
            return f"expected an instruction that multiplies pairs of bfloat16, which {isa.name} has not"
        if getattr(spec, "products", "float") == TF32:
            return "products: expected 'float' or integers, as a CPU multiplies float32 as it is, given 'tf32'"
        if integer and spec.products == "float":
            return "products: expected integers, given 'float'"
        if integer and not isa.integer:
            return f"expected a CPU that gains by {integer}, which {isa.name} as of this target does not"
        return refuses(spec, isa) if refuses else None

    def make(spec: Spec, target: Target) -> Kernel:
        isa = isa_of(target)
        function, layout = build(shared(spec, isa) if shared else spec, isa), weight(spec, isa) if weight else None
        if not isa.converts_half and "float16" in vars(spec).values():
            function, layout = spelled_out(function), layout and replace(layout, pack=spelled_out(layout.pack))
        return Kernel(name, function, layout, map_layout, INTEGER.get(integer))

    return Implementation(name, accepts, make)


def with_and_without_dot(build: Callable[[Spec, Isa], tvm.tirx.PrimFunc], **options) -> tuple[Implementation, ...]:
    """The rows of a kernel for CPUs that has a way with the bfloat16 dot instruction."""
    name = build.__name__
    return on_cpu(build, f"{name}_dot", dot=True, **options), on_cpu(build, name, dot=False, **options)


def with_integers(build: Callable[[Spec, Isa], tvm.tirx.PrimFunc], **options) -> tuple[Implementation, ...]:
    """The rows of a kernel of integer products, one to each instruction; the 7-bit one is taken only if it is asked for."""
    order = ("vpdpbusd", "sdot", "vpmaddubsw", "vpmaddwd")
    return tuple(on_cpu(build, f"{build.__name__}_{name}", dot=False, integer=name, **options) for name in order)


PAIRS = PairsByBlock()

KERNELS: dict[str, tuple[Implementation, ...]] = {
    "activation": (on_cpu(elementwise.elementwise),),
    "add_taps": (on_cpu(upsampled_conv.add_taps, map_layout=PAIRS),),
    "attention": with_and_without_dot(attention.attention),
    "batch_offsets": (on_cpu(batch_offsets.batch_offsets),),
    "build_index": (on_cpu(coordinate_index.build_index),),
    "channel_affine": (on_cpu(channel_affine.channel_affine),),
    "channel_layer_norm": (on_cpu(channel_layer_norm.channel_layer_norm),),
    "checksum": (on_cpu(checksum.checksum),),
    "conv3d": (
        on_cpu(winograd.winograd, dot=False, refuses=winograd.refuses, weight=winograd.weight_layout, shared=winograd.shared),
        *with_and_without_dot(conv.conv3d, weight=conv.weight_layout, shared=conv.shared),
    ),
    "conv_transpose3d": with_and_without_dot(conv_transpose.conv_transpose3d, weight=conv_transpose.weight_layout),
    "copy_sites": (on_cpu(sites.copy_sites),),
    "count_cuts": (on_cpu(serialize.count_cuts),),
    "count_nonzero": (on_cpu(flatnonzero.count_nonzero),),
    "cut_sequence": (on_cpu(serialize.cut_sequence),),
    "dense_group_norm": (on_cpu(dense_group_norm.dense_group_norm),),
    "fill_nonzero": (on_cpu(flatnonzero.fill_nonzero),),
    "fill_unique": (on_cpu(unique.fill_unique),),
    "find_sites": (on_cpu(sites.find_sites),),
    "from_dense": (on_cpu(dense.from_dense),),
    "gather_rows": (on_cpu(gather_rows.gather_rows),),
    "grant_memory": (on_cpu(memory.grant_memory),),
    "group_norm": (on_cpu(group_norm.group_norm),),
    "group_rows": (on_cpu(windows.group_rows),),
    "interpolate": (on_cpu(interpolate.interpolate),),
    "inverse_map": (on_cpu(kernel_map.inverse_map, map_layout=PAIRS),),
    "layer_norm": (on_cpu(layer_norm.layer_norm),),
    "linear": (
        *with_integers(
            int8_linear.int8_linear, refuses=int8_linear.refuses, weight=int8_linear.weight_layout, shared=int8_linear.shared
        ),
        *with_and_without_dot(linear.linear, weight=linear.weight_layout, shared=linear.shared),
    ),
    "lookup": (on_cpu(coordinate_index.lookup),),
    "modulated_add": (on_cpu(modulated_add.modulated_add),),
    "plan_index": (on_cpu(coordinate_index.plan_index),),
    "plan_sites": (on_cpu(sites.plan_sites),),
    "plan_unique": (on_cpu(unique.plan_unique),),
    "pool": (on_cpu(pool.pool, map_layout=PAIRS),),
    "probe_map": (on_cpu(kernel_map.probe_map, map_layout=PAIRS),),
    "quantize": (on_cpu(quantize.quantize),),
    "rank_unique": (on_cpu(unique.rank_unique),),
    "resize_bilinear": (on_cpu(resize_bilinear.resize_bilinear),),
    "rms_norm_heads": (on_cpu(rms_norm_heads.rms_norm_heads),),
    "segment_pool": (on_cpu(segment_pool.segment_pool),),
    "serial_keys": (on_cpu(serialize.serial_keys),),
    "serialize": (on_cpu(serialize.serialize),),
    "set_rows": (on_cpu(union.set_rows),),
    "softmax": (on_cpu(softmax.softmax),),
    "sparse_conv": (
        on_cpu(
            depthwise_conv.depthwise_conv,
            refuses=depthwise_conv.refuses,
            weight=depthwise_conv.weight_layout,
            map_layout=PAIRS,
            shared=depthwise_conv.shared,
        ),
        *with_integers(
            int8_gather_gemm.int8_gather_gemm,
            refuses=int8_gather_gemm.refuses,
            weight=int8_gather_gemm.weight_layout,
            map_layout=PAIRS,
            shared=int8_gather_gemm.shared,
        ),
        *with_and_without_dot(
            gather_gemm.gather_gemm, weight=gather_gemm.weight_layout, map_layout=PAIRS, shared=gather_gemm.shared
        ),
    ),
    "sparse_conv_weight_gradient": (
        on_cpu(
            depthwise_weight_gradient.depthwise_weight_gradient,
            dot=False,
            refuses=depthwise_weight_gradient.refuses,
            map_layout=PAIRS,
        ),
        on_cpu(weight_gradient.weight_gradient, dot=False, map_layout=PAIRS),
    ),
    "subdivide": (on_cpu(subdivide.subdivide),),
    "submanifold_map": (on_cpu(kernel_map.submanifold_map, map_layout=PAIRS),),
    "to_dense": (on_cpu(dense.to_dense),),
    "trilinear": (on_cpu(trilinear.trilinear),),
    "window_coords": (on_cpu(windows.window_coords),),
}
