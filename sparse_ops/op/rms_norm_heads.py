"""RMS normalisation of attention heads, `R.sparse_ops.rms_norm_heads`."""

from tvm import relax

from tir_kernels.spec.rms_norm_heads import RmsNormHeads

from .register import call_spec, register_op
from .signature import Bound, Signature, features, parameter

SIGNATURE = Signature(
    "rms_norm_heads",
    (features("x", "n", "heads", "depth"), parameter("gamma", "heads", "depth")),
    known=("heads", "depth"),
    result=("n", "heads", "depth"),
)


def rms_norm_heads(x: relax.Expr, gamma: relax.Expr) -> relax.Call:
    """`x / max(|x|, 1e-12) * gamma * sqrt(D)`, where |x| is the length of a row's vector in one head.

    x float32, bfloat16 or float16 [N, H, D]; gamma float32 [H, D]. Returns dtype of x, [N, H, D]; computed in float32.

    Raises ValueError naming the argument whose dtype or shape does not fit.
    """
    return _make(x=x, gamma=gamma)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = RmsNormHeads(bound.dims["heads"], bound.dims["depth"], bound.dtype)
    return call_spec(bb, spec, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
