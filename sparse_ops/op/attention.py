"""Attention over batch segments, `R.sparse_ops.attention`."""

from tvm import relax

from tir_kernels.spec.attention import Attention

from .numbers import check_positive
from .register import call_spec, register_op
from .signature import Bound, Signature, features, index, offsets

SIGNATURE = Signature(
    "attention",
    (
        features("q", "n", "heads", "depth"),
        features("k", "m", "heads", "depth", dtype="q"),
        features("v", "m", "heads", "depth", dtype="q"),
        offsets("q_offsets", "segments"),
        offsets("k_offsets", "segments"),
        index("q_order", "n", optional=True),
        index("k_order", "picked", optional=True),
    ),
    options=("scale",),
    known=("heads", "depth"),
    summed=("depth",),
    result=("n", "heads", "depth"),
)


def attention(
    q: relax.Expr,
    k: relax.Expr,
    v: relax.Expr,
    q_offsets: relax.Expr,
    k_offsets: relax.Expr,
    scale: float | None = None,
    q_order: relax.Expr | None = None,
    k_order: relax.Expr | None = None,
) -> relax.Call:
    """softmax(scale * q k^T) v for every head; the queries of segment b see the keys of segment b only.

    q float32, bfloat16 or float16 [Nq, H, D]; k, v, same dtype, [Nk, H, D]; q_offsets, k_offsets int32 [B + 1]: segment b is
    rows offsets[b] to offsets[b + 1], see `batch_offsets`; scale above 0, by default 1 / sqrt(D). Returns dtype of q,
    [Nq, H, D]; computed without a matrix of all pairs, in float32, but that bfloat16 weights of the sum over values are
    rounded to bfloat16 where the CPU multiplies pairs of them. Queries of a segment without keys get 0.

    With q_order int32 [Nq], every row of q once, segment b consists of the rows q_order[q_offsets[b] : q_offsets[b + 1]]
    of q and of the result. With k_order int32 [Mk], its keys are the rows k_order[k_offsets[b] : k_offsets[b + 1]] of k
    and v: rows may be in several segments, or in none, and k_offsets ascend to Mk. Rows are read and written in place.

    Raises ValueError naming the argument or option that does not fit and, from the running module, when offsets do not
    ascend from 0 to the number of rows, or an order has a row that there is not, or q_order one twice.
    """
    return _make(
        q=q,
        k=k,
        v=v,
        q_offsets=q_offsets,
        k_offsets=k_offsets,
        q_order=q_order,
        k_order=k_order,
        scale=None if scale is None else check_positive("attention", "scale", scale),
    )


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    heads, depth, has = bound.dims["heads"], bound.dims["depth"], (bound.has("q_order"), bound.has("k_order"))
    spec = Attention(heads, depth, bound.dtype, bound.options["scale"], *has)
    return call_spec(bb, spec, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
