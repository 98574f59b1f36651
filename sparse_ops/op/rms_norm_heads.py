"""RMS normalisation of attention heads, `R.sparse_ops.rms_norm_heads`."""

from tvm import relax

from tir_kernels.spec.rms_norm_heads import RmsNormHeads

from .register import FLOATS, call_spec, check_tensor, register_op
from .shapes import known


def rms_norm_heads(x: relax.Expr, gamma: relax.Expr) -> relax.Call:
    """`x / max(|x|, 1e-12) * gamma * sqrt(D)`, where |x| is the length of a row's vector in one head.

    x float32 or bfloat16 [N, H, D]; gamma float32 [H, D]. Returns dtype of x, [N, H, D]; computed in float32.

    Raises ValueError naming the argument whose dtype or shape does not fit.
    """
    return _make(x, gamma)


def _infer(call: relax.Call) -> relax.TensorType:
    rows, heads, depth = check_tensor(call, 0, "x", (None, None, None), FLOATS)
    known(call, "x", [heads, depth])
    check_tensor(call, 1, "gamma", (heads, depth), ("float32",))
    return relax.TensorType([rows, heads, depth], str(call.args[0].ty.dtype))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    _, heads, depth = call.ty.shape.values
    return call_spec(bb, RmsNormHeads(int(heads), int(depth), str(call.ty.dtype)), call.args, call.ty)


_make = register_op("rms_norm_heads", _infer, _legalize)
