"""Softmax over the last axis -> `sparse_ops.softmax`."""

import tvm
from tvm import relax

from ..op.softmax import softmax
from .rewrite import Walk, op_is, rewrite_pass
from .rows import is_feature


def RecognizeSoftmax() -> tvm.transform.Pass:
    """`R.nn.softmax` over the last axis -> `R.sparse_ops.softmax`. Run `RecognizeAttention` before."""
    return rewrite_pass("RecognizeSoftmax", _recognize)


def _recognize(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if not op_is(call, "nn.softmax") or not is_feature(call):
        return None
    return softmax(*call.args) if int(call.attrs.axis) in (-1, call.ty.ndim - 1) else None
