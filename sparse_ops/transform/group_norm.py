"""Group normalisation, with the activation behind it -> `sparse_ops.dense_group_norm`."""

import tvm
from tvm import relax

from ..op.dense_group_norm import dense_group_norm
from .absorb import recognizer
from .rewrite import Walk, rewrite_pass, shape_of, static
from .rows import is_feature, vector_of


def RecognizeGroupNorm() -> tvm.transform.Pass:
    """`R.nn.group_norm` of [B, C, *spatial] -> `R.sparse_ops.dense_group_norm`, with an activation if nothing else reads it.

    Run `RecognizeActivation` before.
    """
    return rewrite_pass("RecognizeGroupNorm", recognizer("dense_group_norm", _norm, "nn.group_norm"))


def _norm(walk: Walk, call: relax.Call) -> relax.Expr | None:
    (x, *affine), attrs = call.args, call.attrs
    rank = call.ty.ndim
    axes = {int(axis) % rank for axis in attrs.axes}
    if (
        not is_feature(x)
        or int(attrs.channel_axis) % rank != 1
        or axes != set(range(2, rank))
        or static(shape_of(x)[1]) is None
    ):
        return None
    if not (attrs.center and attrs.scale):
        return None
    weight, bias = (vector_of(walk, vector, shape_of(x)[1]) for vector in affine)
    return dense_group_norm(x, weight, bias, int(attrs.num_groups), float(attrs.epsilon))
