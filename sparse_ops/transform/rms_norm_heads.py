"""Vectors of attention heads divided by their length, as arithmetic -> `sparse_ops.rms_norm_heads`."""

from math import inf, isclose, sqrt

import tvm
from tvm import relax

from tir_kernels.spec.rms_norm_heads import SMALLEST_NORM

from .. import op
from .activation import factors_of
from .rewrite import Walk, op_is, product, rewrite_pass, same_shape, scalar, shape_of, static
from .rows import is_feature


def RecognizeRmsNormHeads() -> tvm.transform.Pass:
    """`x / max(|x|, 1e-12) * gamma * sqrt(D)` of x [..., H, D], |x| over its last axis -> `R.sparse_ops.rms_norm_heads`.

    Factors may stand in any order; |x| is the root of a sum of squares or of powers of absolute values, as torch's `normalize`
    comes. Run `SimplifyLayout` before.
    """
    return rewrite_pass("RecognizeRmsNormHeads", _recognize)


def _recognize(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if not op_is(call, "multiply") or not is_feature(call) or call.ty.ndim < 3:
        return None
    *outer, heads, depth = shape_of(call)
    if static(heads) is None or static(depth) is None:
        return None
    constant, factors = factors_of(walk, call)
    if len(factors) != 2 or not isclose(constant, sqrt(static(depth)), rel_tol=1e-6):
        return None
    for gamma, normalized in (factors, factors[::-1]):
        if (x := _normalized(walk, normalized)) is None or not same_shape(shape_of(x), shape_of(call)):
            continue
        if not is_feature(gamma) or not same_shape(shape_of(gamma)[-2:], [heads, depth]):
            continue
        if any(static(dim) != 1 for dim in shape_of(gamma)[:-2]):
            continue
        gamma = walk.astype(walk.reshape(gamma, [heads, depth]), "float32")
        return walk.reshape(
            walk.emit(op.rms_norm_heads(walk.reshape(x, [product(outer), heads, depth]), gamma)), shape_of(call)
        )
    return None


def _normalized(walk: Walk, expr: relax.Expr) -> relax.Expr | None:
    """x of x / max(|x|, 1e-12)."""
    division = walk.call_of(expr, "divide")
    if division is None:
        return None
    x, length = division.args
    if (spread := walk.call_of(length, "broadcast_to")) is not None:
        length = spread.args[0]
    clip = walk.call_of(length, "clip")
    if clip is None or not isclose(clip.args[1].value, SMALLEST_NORM, rel_tol=1e-6):
        return None
    if clip.args[2].value != inf:
        return None
    return x if _length_of(walk, clip.args[0], x) else None


def _length_of(walk: Walk, expr: relax.Expr, x: relax.Expr) -> bool:
    """Whether `expr` is the root of the sum over the last axis of the squares of x."""
    root = walk.call_of(expr, "sqrt", "power")
    if root is None or (op_is(root, "power") and scalar(root.args[1]) != 0.5):
        return False
    total = walk.call_of(root.args[0], "sum")
    if total is None or not total.attrs.keepdims or [int(axis) % x.ty.ndim for axis in total.attrs.axis] != [x.ty.ndim - 1]:
        return False
    square = walk.call_of(total.args[0], "power", "multiply")
    if square is None or (op_is(square, "power") and scalar(square.args[1]) != 2):
        return False
    factors = square.args[:1] if op_is(square, "power") else square.args
    bases = [absolute.args[0] if (absolute := walk.call_of(base, "abs")) is not None else base for base in factors]
    return all(walk.value(base) == walk.value(x) for base in bases)
