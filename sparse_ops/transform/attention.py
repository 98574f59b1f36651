"""Attention, written out or as one op -> `sparse_ops.attention`, which keeps no matrix of all pairs."""

from dataclasses import dataclass, field
from math import inf

import tvm
from tvm import relax

from .. import op
from .rewrite import Walk, axes_of, op_is, product, rewrite_pass, same, same_shape, scalar, shape_of, static
from .rows import is_feature, multiples


def RecognizeAttention() -> tvm.transform.Pass:
    """`R.nn.attention`, and matmul - softmax - matmul, without mask and bias -> `R.sparse_ops.attention`.

    Between the matmuls may stand factors, reshapes that keep queries and keys apart, and the guard that torch's
    decomposition of `scaled_dot_product_attention` puts around the softmax. Attention whose weights something else reads
    stays as it is. Run `SimplifyLayout` before and behind.
    """
    return rewrite_pass("RecognizeAttention", _recognize)


def _recognize(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if not op_is(call, "nn.attention", "matmul") or not all(map(is_feature, (call, *call.args))):
        return None
    return _whole(walk, call) if op_is(call, "nn.attention") else _written_out(walk, call)


def _whole(walk: Walk, call: relax.Call) -> relax.Expr | None:
    attrs, depth = call.attrs, static(shape_of(call)[-1])
    if len(call.args) > 3 or attrs.causal_mask is not None or attrs.window_size is not None or depth is None:
        return None
    return _attention(walk, *call.args, depth**-0.5 if attrs.scale is None else float(attrs.scale))


def _attention(walk: Walk, q: relax.Expr, k: relax.Expr, v: relax.Expr, scale: float) -> relax.Expr | None:
    """Attention of q [B, N, H, D] to k, v [B, M, H, D]; None where the kernel does not do it."""
    batch, queries, heads, depth = shape_of(q)
    keys = shape_of(k)[1]
    if None in (static(heads), static(depth)) or not 0 < scale < inf:
        return None
    if not all(same_shape(shape_of(x), [batch, keys, heads, depth]) and x.ty.dtype == q.ty.dtype for x in (k, v)):
        return None
    rows = (walk.reshape(x, [batch * shape_of(x)[1], heads, depth]) for x in (q, k, v))
    offsets = multiples(walk, batch, queries), multiples(walk, batch, keys)
    return walk.reshape(walk.emit(op.attention(*rows, *offsets, scale=scale)), shape_of(q))


def _written_out(walk: Walk, call: relax.Call) -> relax.Expr | None:
    """softmax(scale * q @ k) @ v, for q [..., N, D], k [..., D, M], v [..., M, D]."""
    weights, inputs = _Chain(walk), _Chain(walk)
    probabilities = weights.follow(call.args[0])
    if (guard := walk.call_of(probabilities, "where")) is not None:
        weights.passed.append(probabilities)
        probabilities = guard.args[2]
    softmax = walk.call_of(probabilities, "nn.softmax")
    if softmax is None or int(softmax.attrs.axis) not in (-1, len(shape_of(softmax)) - 1) or weights.scale != 1:
        return None
    if guard is not None and not weights.guards(guard, softmax.args[0]):
        return None
    weights.passed.append(probabilities)
    scores = weights.follow(softmax.args[0])
    first = walk.call_of(scores, "matmul")
    v = inputs.follow(call.args[1])
    if first is None or inputs.scale != 1 or not weights.are_private([*weights.passed, scores]):
        return None
    inputs.scale = weights.scale
    q, k = (inputs.follow(inputs.unscaled(x)) for x in first.args)
    *lead, queries, depth = shape_of(q)
    keys = shape_of(v)[-2]
    if any(not same(product(shape_of(x)[:-2]), product(lead)) for x in (call, k, v)):
        return None
    if not same_shape([*shape_of(k)[-2:], shape_of(v)[-1]], [depth, keys, depth]):
        return None

    batch, heads = (product(lead[:-1]), lead[-1]) if _heads_after_rows(walk, q) else (product(lead), 1)

    def heads_last(x, rows):
        return walk.permute(walk.reshape(x, [batch, heads, rows, depth]), [0, 2, 1, 3])

    k = walk.permute(k, [*range(len(shape_of(k)) - 2), -1, -2])
    out = _attention(walk, heads_last(q, queries), heads_last(k, keys), heads_last(v, keys), inputs.scale)
    return None if out is None else walk.reshape(walk.permute(out, [0, 2, 1, 3]), shape_of(call))


def _heads_after_rows(walk: Walk, q: relax.Expr) -> bool:
    """Whether q [..., H, N, D] lies in memory as [..., N, ..., H, D], so that rows of all heads can be read in place."""
    permute = walk.call_of(q, "permute_dims")
    if permute is None or len(shape_of(q)) < 3 or static(shape_of(q)[-3]) is None:
        return False
    axes = axes_of(permute)
    return axes[-2] < axes[-3]


@dataclass
class _Chain:
    """Follows values to where they come from: the factors on the way, and the variables that were passed."""

    walk: Walk
    scale: float = 1.0
    passed: list[relax.Expr] = field(default_factory=list)

    def follow(self, expr: relax.Expr) -> relax.Expr:
        """Through factors, and reshapes that keep the last two axes."""
        while True:
            reshape = self.walk.call_of(expr, "reshape")
            if reshape is not None and same_shape(shape_of(reshape.args[0])[-2:], shape_of(expr)[-2:]):
                inner = reshape.args[0]
            elif (inner := self._without_factor(expr)) is None:
                return expr
            self.passed.append(expr)
            expr = inner

    def unscaled(self, expr: relax.Expr) -> relax.Expr:
        """The same elements in the same places before they were multiplied by factors."""
        while (inner := self._without_factor(expr)) is not None:
            expr = inner
        move = self.walk.call_of(expr, "reshape", "permute_dims")
        if move is None or (inner := self.unscaled(move.args[0])) is move.args[0]:
            return expr
        return self.walk.emit(relax.Call(move.op, [inner, *move.args[1:]], move.attrs))

    def _without_factor(self, expr: relax.Expr) -> relax.Expr | None:
        """What is multiplied by a scalar, which is added to `scale`."""
        if (call := self.walk.call_of(expr, "multiply", "divide")) is None:
            return None
        x, factor = call.args[0], scalar(call.args[1])
        if factor is None and op_is(call, "multiply"):
            x, factor = call.args[1], scalar(x)
        if not factor or not same_shape(shape_of(x), shape_of(expr)):
            return None
        self.scale *= 1 / factor if op_is(call, "divide") else factor
        return x

    def guards(self, where: relax.Call, scores: relax.Expr) -> bool:
        """Whether `where(no score of the row is above -inf, 0, ...)`, which changes nothing where no score is -inf."""
        mask, zero, _ = where.args
        negations = 0
        while (call := self.walk.call_of(mask, "logical_not", "astype", "max", "sum", "greater", "equal")) is not None:
            self.passed.append(mask)
            if op_is(call, "greater") and scalar(call.args[1]) != 0:
                return False
            if op_is(call, "equal"):
                filled = self.walk.call_of(zero, "full_like", "full", "zeros", "zeros_like")
                is_zero = filled is not None and (op_is(filled, "zeros", "zeros_like") or scalar(filled.args[1]) == 0)
                self.passed.append(zero)
                infinite = scalar(call.args[1]) == -inf and self.walk.value(call.args[0]) == self.walk.value(scores)
                return infinite and negations % 2 == 0 and (is_zero or scalar(zero) == 0)
            negations += op_is(call, "logical_not")
            mask = call.args[0]
        return False

    def are_private(self, variables: list[relax.Expr]) -> bool:
        """Whether nothing but these variables reads them, and one reader at most the last value that was made of them."""
        last, *inner = variables
        return self.walk.is_read_once(last) and all(
            reader in variables for variable in inner for reader in self.walk.readers.get(variable, ())
        )
