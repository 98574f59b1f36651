"""Matrix products with a matrix of known size, and what follows them on the same elements -> `sparse_ops.linear`."""

import tvm
from tvm import relax

from .. import op
from .absorb import recognizer
from .rewrite import Walk, rewrite_pass, same_shape, shape_of, static
from .rows import is_feature, rows_of


def RecognizeLinear() -> tvm.transform.Pass:
    """`matmul(x [..., Cin], w [Cin, Cout])` -> `R.sparse_ops.linear` on rows, with what is applied to its result.

    In this order, each at most once, and only where nothing else reads the value in between: a bias [Cout], a gate [Cout] or
    [B, 1, ..., 1, Cout], a residual, an activation. Run `SimplifyLayout` and `RecognizeActivation` before.
    """
    return rewrite_pass("RecognizeLinear", recognizer("linear", _matmul, "matmul"))


def _matmul(walk: Walk, call: relax.Call) -> relax.Expr | None:
    x, w = call.args
    spread = walk.call_of(w, "broadcast_to")
    if spread is not None and len(shape_of(spread.args[0]) or ()) == 2:
        w = spread.args[0]  # one matrix for the whole batch
    if not all(is_feature(tensor) and tensor.ty.dtype == call.ty.dtype for tensor in (call, x, w)) or x.ty.ndim < 2:
        return None
    if w.ty.ndim != 2 or None in map(static, shape_of(w)) or not same_shape(shape_of(call)[:-1], shape_of(x)[:-1]):
        return None
    transposed = walk.call_of(w, "permute_dims")
    weight = walk.permute(w, [1, 0]) if transposed is None else transposed.args[0]
    return walk.reshape(walk.emit(op.linear(rows_of(walk, x), weight)), shape_of(call))
