"""Layer normalisation over the last axis, with the modulation and the activation behind it -> `sparse_ops.layer_norm`."""

import tvm
from tvm import relax

from .. import op
from .absorb import recognizer
from .rewrite import Walk, rewrite_pass, shape_of, static
from .rows import is_feature, rows_of, vector_of


def RecognizeLayerNorm() -> tvm.transform.Pass:
    """`R.nn.layer_norm` over the last axis -> `R.sparse_ops.layer_norm` on rows, with what is applied to its result.

    In this order, each at most once, and only where nothing else reads the value in between: a factor (1 + scale), a
    shift, each [C] or [B, 1, ..., 1, C], an activation. Run `SimplifyLayout` and `RecognizeActivation` before.
    """
    return rewrite_pass("RecognizeLayerNorm", recognizer("layer_norm", _norm, "nn.layer_norm"))


def _norm(walk: Walk, call: relax.Call) -> relax.Expr | None:
    (x, *affine), attrs = call.args, call.attrs
    if not is_feature(x) or [int(axis) % x.ty.ndim for axis in attrs.axes] != [x.ty.ndim - 1]:
        return None
    channels = shape_of(x)[-1]
    if static(channels) is None:
        return None
    weight, bias = (
        vector_of(walk, vector, channels) if used else None
        for vector, used in zip(affine, (attrs.scale, attrs.center), strict=True)
    )
    return walk.reshape(walk.emit(op.layer_norm(rows_of(walk, x), weight, bias, eps=float(attrs.epsilon))), shape_of(x))
