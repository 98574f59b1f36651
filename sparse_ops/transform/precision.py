"""bfloat16 inside of a float32 model."""

import tvm
from tvm import relax

from ..op.register import check_choice
from .rewrite import Walk, op_is, rewrite_pass

PRECISIONS = ("float32", "bfloat16")
WIDE, NARROW = PRECISIONS

# Positions of the features and weights of each op, and where its residual stands if it has one and no bias. Softmax is not
# here: to round a logit is to multiply its weight.
FEATURES = {
    "activation": ((0,), None),
    "attention": ((0, 1, 2), None),
    "channel_layer_norm": ((0,), None),
    "conv3d": ((0, 1), 2),
    "dense_group_norm": ((0,), None),
    "from_dense": ((0,), None),
    "gather_rows": ((0,), None),
    "group_norm": ((0,), None),
    "layer_norm": ((0,), None),
    "linear": ((0, 1), 2),
    "modulated_add": ((0, 1), None),
    "pool": ((0,), None),
    "rms_norm_heads": ((0,), None),
    "segment_pool": ((0,), None),
    "sparse_conv": ((0, 1), 4),
    "to_dense": ((0,), None),
    "upsampled_conv": ((0, 1), 4),
}
MOVES = ("reshape", "permute_dims", "strided_slice", "concat")  # ops that compute nothing


def to_precision(precision: str) -> tvm.transform.Pass:
    """A pass after which our ops work on features and weights of `precision`, "float32" (nothing changes) or "bfloat16".

    Inputs, outputs and parameters stay float32, as do biases, norm weights, modulation tables and sums. What flows from one
    of our ops to another is bfloat16, the residual stream too. It could stay float32 only with a cast of its own before every
    norm and an addition behind every layer, and half of the error would be left: 24 transformer blocks of random weights
    differ from float32 by 1.0% (relative L2), torch's by 1.1%. What other ops compute is float32; the casts around them fuse
    with them. Weights are cast where parameters are lifted or constants folded.

    Raises ValueError for another precision.
    """
    check_choice("transform.to_precision", "precision", precision, PRECISIONS)
    if precision == WIDE:
        return tvm.transform.Sequential([])
    return tvm.transform.Sequential([rewrite_pass("ToBfloat16", _rule), relax.transform.EliminateCommonSubexpr()])


def _rule(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if op_is(call, "astype") and _dtype(call) == NARROW:
        return _narrowed(walk, call.args[0])
    prefix, _, name = call.op.name.rpartition(".")
    if prefix != "relax.sparse_ops" or name not in FEATURES or _dtype(call) != WIDE:
        return None
    positions, residual = FEATURES[name]
    if residual is not None and call.attrs["residual"]:
        positions += (residual + bool(call.attrs["bias"]),)
    args = [_narrow(walk, arg) if place in positions else arg for place, arg in enumerate(call.args)]
    return relax.op.astype(walk.emit(relax.Call(call.op, args, call.attrs)), WIDE)


def _narrow(walk: Walk, expr: relax.Expr) -> relax.Expr:
    narrow = _narrowed(walk, expr)
    return walk.astype(expr, NARROW) if narrow is None else narrow


def _narrowed(walk: Walk, expr: relax.Expr) -> relax.Expr | None:
    """`expr` in bfloat16 where it was made from nothing but that, so that the way over float32 can be left out."""
    if _dtype(expr) == NARROW:
        return expr
    if (cast := walk.call_of(expr, "astype")) is not None:
        return cast.args[0] if _dtype(cast.args[0]) == NARROW else None
    if (move := walk.call_of(expr, *MOVES)) is None:
        return None
    first = move.args[0]
    if op_is(move, "concat"):
        parts = [_narrowed(walk, part) for part in walk.value(first).fields]
        source = None if None in parts else relax.Tuple(parts)
    else:
        source = _narrowed(walk, first)
    return None if source is None else walk.emit(relax.Call(move.op, [source, *move.args[1:]], move.attrs))


def _dtype(expr: relax.Expr) -> str | None:
    return str(expr.ty.dtype) if isinstance(expr.ty, relax.TensorType) else None
