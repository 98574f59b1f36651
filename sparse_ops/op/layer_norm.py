"""Layer normalisation with modulation, `R.sparse_ops.layer_norm`."""

import numpy as np
from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.layer_norm import LayerNorm

from .numbers import check_positive
from .register import call_spec, check_choice, register_op
from .signature import Bound, Epilogue, Signature, Table, features, index, parameter

SIGNATURE = Signature(
    "layer_norm",
    (
        features("x", "n", "channels"),
        parameter("weight", "channels", optional=True),
        parameter("bias", "channels", optional=True),
        parameter(
            "scale",
            Table("batch", "batch_index"),
            "channels",
            optional=True,
            epilogue=(0, Epilogue.MULTIPLY_BY_ONE_PLUS),
        ),
        parameter("shift", Table("batch", "batch_index"), "channels", optional=True, epilogue=(1, Epilogue.ADD)),
        index("batch_index", "n", optional=True),
    ),
    options=("eps", "activation"),
    known=("channels",),
    result=("n", "channels"),
)


def layer_norm(
    x: relax.Expr,
    weight: relax.Expr | None = None,
    bias: relax.Expr | None = None,
    scale: relax.Expr | None = None,
    shift: relax.Expr | None = None,
    eps: float = 1e-6,
    activation: str = "none",
    batch_index: relax.Expr | None = None,
) -> relax.Call:
    """`activation((norm(x) * weight + bias) * (1 + scale[b]) + shift[b])`, every row normalised by itself.

    x float32, bfloat16 or float16 [N, C]; weight, bias float32 [C]; scale, shift float32 [B, C], of which row i takes b =
    batch_index[i], int32 [N], or the only one if no batch_index is given (then B = 1); activation one of `ACTIVATIONS`.
    Returns dtype of x, [N, C]; computed in float32.

    Raises ValueError naming the argument or option that does not fit and, from the running module, for the first entry
    of batch_index that is not in 0 to B - 1.
    """
    check_choice("layer_norm", "activation", activation, ACTIVATIONS)
    if batch_index is not None and scale is None and shift is None:
        batch_index = None  # nothing depends on it
    return _make(
        x=x,
        weight=weight,
        bias=bias,
        scale=scale,
        shift=shift,
        batch_index=batch_index,
        eps=check_positive("layer_norm", "eps", eps),
        activation=activation,
    )


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    channels, batch = bound.dims["channels"], bound.dims.get("batch", 1)
    missing = {
        "weight": lambda: relax.const(np.ones(channels, "float32")),
        "bias": lambda: relax.const(np.zeros(channels, "float32")),
        "scale": lambda: bb.emit(relax.op.zeros((batch, channels), "float32")),
        "shift": lambda: bb.emit(relax.op.zeros((batch, channels), "float32")),
    }
    args = [bound[name] if bound.has(name) else make() for name, make in missing.items()]
    index = [bound["batch_index"]] if bound.has("batch_index") else []
    spec = LayerNorm(channels, bound.dtype, bool(index), bound.options["eps"], bound.options["activation"])
    return call_spec(bb, spec, [bound["x"], *args, *index], bound.type)


_make = register_op(SIGNATURE, _legalize)
