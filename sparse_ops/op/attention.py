"""Attention over batch segments, `R.sparse_ops.attention`."""

from tvm import relax

from tir_kernels.spec.attention import Attention

from .register import FLOATS, call_spec, check_tensor, register_op
from .shapes import check_positive, known

ORDERS = ("q_order", "k_order")


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

    q float32 or bfloat16 [Nq, H, D]; k, v, same dtype, [Nk, H, D]; q_offsets, k_offsets int32 [B + 1]: segment b is
    rows offsets[b] to offsets[b + 1], see `batch_offsets`; scale above 0, by default 1 / sqrt(D). Returns dtype of q,
    [Nq, H, D]; computed without a matrix of all pairs, in float32, but that bfloat16 weights of the sum over values are
    rounded to bfloat16 where the CPU multiplies pairs of them. Queries of a segment without keys get 0.

    With q_order int32 [Nq], every row of q once, segment b consists of the rows q_order[q_offsets[b] : q_offsets[b + 1]]
    of q and of the result. With k_order int32 [Mk], its keys are the rows k_order[k_offsets[b] : k_offsets[b + 1]] of k
    and v: rows may be in several segments, or in none, and k_offsets ascend to Mk. Rows are read and written in place.

    Raises ValueError naming the argument or option that does not fit and, from the running module, when offsets do not
    ascend from 0 to the number of rows, or an order has a row that there is not, or q_order one twice.
    """
    orders = {name: order for name, order in zip(ORDERS, (q_order, k_order), strict=True) if order is not None}
    options = {} if scale is None else {"scale": check_positive("attention", "scale", scale)}
    return _make(q, k, v, q_offsets, k_offsets, *orders.values(), orders=list(orders), **options)


def _orders(call: relax.Call) -> dict[str, int]:
    """Where the orders stand that were given."""
    return {str(name): place for place, name in enumerate(call.attrs["orders"], start=5)}


def _infer(call: relax.Call) -> relax.TensorType:
    rows, heads, depth = check_tensor(call, 0, "q", (None, None, None), FLOATS)
    known(call, "q", [heads, depth])
    dtype = str(call.args[0].ty.dtype)
    keys, _, _ = check_tensor(call, 1, "k", (None, heads, depth), (dtype,))
    check_tensor(call, 2, "v", (keys, heads, depth), (dtype,))
    (batch,) = check_tensor(call, 3, "q_offsets", (None,), ("int32",))
    check_tensor(call, 4, "k_offsets", (batch,), ("int32",))
    for name, place in _orders(call).items():
        check_tensor(call, place, name, (rows if name == "q_order" else None,), ("int32",))
    return relax.TensorType([rows, heads, depth], dtype)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    _, heads, depth = call.ty.shape.values
    scale = float(call.attrs["scale"]) if "scale" in call.attrs else None
    given = (name in _orders(call) for name in ORDERS)
    spec = Attention(int(heads), int(depth), str(call.ty.dtype), scale, *given)
    return call_spec(bb, spec, call.args, call.ty)


_make = register_op("attention", _infer, _legalize)
