"""Attention over batch segments, `R.sparse_ops.attention`."""

from tvm import relax

from tir_kernels.attention import attention as attention_kernel
from tir_kernels.isa import Isa

from .register import FLOATS, call_kernel, check_tensor, register_op
from .shapes import check_positive, known


def attention(
    q: relax.Expr,
    k: relax.Expr,
    v: relax.Expr,
    q_offsets: relax.Expr,
    k_offsets: relax.Expr,
    scale: float | None = None,
) -> relax.Call:
    """softmax(scale * q k^T) v for every head; the queries of segment b see the keys of segment b only.

    q float32 or bfloat16 [Nq, H, D]; k, v, same dtype, [Nk, H, D]; q_offsets, k_offsets int32 [B + 1]: segment b is
    rows offsets[b] to offsets[b + 1], see `batch_offsets`; scale above 0, by default 1 / sqrt(D). Returns dtype of q,
    [Nq, H, D]; computed in float32 without a matrix of all pairs. Queries of a segment without keys get 0.

    Raises ValueError naming the argument or option that does not fit and, from the running module, when offsets do not
    ascend from 0 to the number of rows.
    """
    options = {} if scale is None else {"scale": check_positive("attention", "scale", scale)}
    return _make(q, k, v, q_offsets, k_offsets, **options)


def _infer(call: relax.Call) -> relax.TensorType:
    rows, heads, depth = check_tensor(call, 0, "q", (None, None, None), FLOATS)
    known(call, "q", [heads, depth])
    dtype = str(call.args[0].ty.dtype)
    keys, _, _ = check_tensor(call, 1, "k", (None, heads, depth), (dtype,))
    check_tensor(call, 2, "v", (keys, heads, depth), (dtype,))
    (batch,) = check_tensor(call, 3, "q_offsets", (None,), ("int32",))
    check_tensor(call, 4, "k_offsets", (batch,), ("int32",))
    return relax.TensorType([rows, heads, depth], dtype)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    _, heads, depth = call.ty.shape.values
    scale = float(call.attrs["scale"]) if "scale" in call.attrs else None
    kernel = attention_kernel(int(heads), int(depth), Isa.of(), str(call.ty.dtype), scale)
    return call_kernel(bb, kernel, call.args, call.ty)


_make = register_op("attention", _infer, _legalize)
