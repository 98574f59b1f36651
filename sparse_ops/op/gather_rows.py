"""Row selection, `R.sparse_ops.gather_rows`."""

from tvm import relax

from tir_kernels.spec.gather_rows import GatherRows

from .register import call_spec, register_op
from .signature import FLOATS, Bound, Signature, features
from .signature import index as index_argument

DTYPES = (*FLOATS, "int32", "int64", "bool")
SIGNATURE = Signature(
    "gather_rows",
    (features("x", "n", "channels", dtype=DTYPES), index_argument("index", "m")),
    known=("channels",),
    result=("m", "channels"),
)


def gather_rows(x: relax.Expr, index: relax.Expr) -> relax.Call:
    """`x[index]`, with zeros where the index is -1; with the inverse of a downsampling, nearest upsampling.

    x float32, bfloat16, float16, int32, int64 or bool [N, C]; index int32 [M], entries -1 to N - 1. Returns dtype of x, [M, C].

    Raises ValueError naming the argument whose dtype or shape does not fit and, from the running module, for the first
    entry of the index that is out of range.
    """
    return _make(x=x, index=index)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    return call_spec(bb, GatherRows(bound.dims["channels"], bound.dtype), bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
