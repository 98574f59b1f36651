"""Group normalisation, with the activation behind it -> `sparse_ops.dense_group_norm`."""

import tvm
from tvm import relax

from ..op.dense_group_norm import dense_group_norm
from .absorb import Absorber
from .rewrite import Walk, op_is, rewrite_pass, shape_of, static
from .rows import is_feature, vector_of


def RecognizeGroupNorm() -> tvm.transform.Pass:
    """`R.nn.group_norm` of [B, C, *spatial] -> `R.sparse_ops.dense_group_norm`, with an activation if nothing else reads it.

    Run `RecognizeActivation` before.
    """
    return rewrite_pass("RecognizeGroupNorm", _recognize)


def _recognize(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if not op_is(call, "nn.group_norm"):
        return GROUP_NORM.absorb(walk, call)
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


def _options(norm: relax.Call) -> dict:
    return {"groups": int(norm.attrs["groups"]), "eps": float(norm.attrs["eps"])}


GROUP_NORM = Absorber("sparse_ops.dense_group_norm", dense_group_norm, (), 3, _options)
