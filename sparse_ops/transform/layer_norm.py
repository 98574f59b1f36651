"""Layer normalisation over the last axis, with the modulation and the activation behind it -> `sparse_ops.layer_norm`."""

import tvm
from tvm import relax

from .. import op
from ..op.layer_norm import OPTIONAL
from .absorb import Absorber, Arguments
from .rewrite import Walk, one_plus, op_is, rewrite_pass, shape_of, static
from .rows import is_feature, rows_of, table_of, vector_of


def RecognizeLayerNorm() -> tvm.transform.Pass:
    """`R.nn.layer_norm` over the last axis -> `R.sparse_ops.layer_norm` on rows, with what is applied to its result.

    In this order, each at most once, and only where nothing else reads the value in between: a factor (1 + scale), a
    shift, each [C] or [B, 1, ..., 1, C], an activation. Run `SimplifyLayout` and `RecognizeActivation` before.
    """
    return rewrite_pass("RecognizeLayerNorm", _recognize)


def _recognize(walk: Walk, call: relax.Call) -> relax.Expr | None:
    return _norm(walk, call) if op_is(call, "nn.layer_norm") else LAYER_NORM.absorb(walk, call)


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


def _add(walk: Walk, shape: list, norm: relax.Call, other: relax.Expr) -> Arguments | None:
    return None if "shift" in LAYER_NORM.given(norm) else _modulation(walk, shape, norm, "shift", other)


def _multiply(walk: Walk, shape: list, norm: relax.Call, other: relax.Expr) -> Arguments | None:
    scale = one_plus(walk, other)
    if scale is None or LAYER_NORM.given(norm).keys() & {"scale", "shift"}:
        return None
    return _modulation(walk, shape, norm, "scale", scale)


def _modulation(walk: Walk, shape: list, norm: relax.Call, name: str, other: relax.Expr) -> Arguments | None:
    """The table `other` as argument `name`, if all tables of the call have as many rows."""
    if (found := table_of(walk, other, shape)) is None:
        return None
    table, index = found
    if "scale" in (given := LAYER_NORM.given(norm)) and ("batch_index" in given) != (index is not None):
        return None
    return {name: table} | ({} if index is None else {"batch_index": index})


LAYER_NORM = Absorber(
    "sparse_ops.layer_norm", op.layer_norm, OPTIONAL, 1, lambda call: {"eps": float(call.attrs["eps"])}, _add, _multiply
)
