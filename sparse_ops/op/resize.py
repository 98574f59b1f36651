"""Images resized by bilinear interpolation, `R.sparse_ops.resize_bilinear`."""

from collections.abc import Mapping

import tvm
from tvm import relax

from tir_kernels.guards import resize_words
from tir_kernels.spec.resize_bilinear import ResizeBilinear

from .index import dimensions
from .memory import call_granted, emit_grant
from .numbers import check_flag
from .register import register_op
from .signature import Bound, Signature, extents, features

SIGNATURE = Signature(
    "resize_bilinear",
    (features("x", "batch", "channels", "h", "w"), extents("size", "h_out", "w_out")),
    options=("align_corners",),
    result=("batch", "channels", "h_out", "w_out"),
)


def resize_bilinear(x: relax.Expr, size, align_corners: bool = False) -> relax.Call:
    """As torch's `interpolate(x, size, mode="bilinear")` without antialias, whether it enlarges or shrinks, summed in float32.

    x float32, bfloat16 or float16 [B, C, H, W]; size (H', W'), ints of at least 1 or symbolic dimensions; align_corners: the
    centres of the corner pixels stay where they are, instead of the corners. Returns dtype of x, [B, C, H', W']. All sizes may
    be symbolic.

    Raises ValueError naming the argument that does not fit, also from the running module where x has no pixels, and for a
    result that does not fit into memory, before it is allocated.
    """
    size = dimensions("resize_bilinear", "size", size, 1, count=2)
    return _make(x=x, size=size, align_corners=check_flag("resize_bilinear", "align_corners", align_corners))


def _derive(bound: Bound) -> Mapping[str, tvm.tirx.Expr]:
    analyzer, size, size_out = tvm.sym.Analyzer(), bound.shape(("h", "w")), bound.shape(("h_out", "w_out"))
    if any(analyzer.can_prove(extent < 1) for extent in size):
        bound.refuse(resize_words(*(getattr(extent, "value", extent) for extent in (*size, *size_out))))
    return {}


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    granted = emit_grant(bb, "resize_bilinear", (bound.dtype, bound.type.shape.values))
    spec = ResizeBilinear(bound.dtype, bound.options["align_corners"])
    return call_granted(bb, spec, [bound["x"]], granted, bound.type)


_make = register_op(SIGNATURE, _legalize, derive=_derive)
