"""Layer normalisation with modulation, `R.sparse_ops.layer_norm`."""

import numpy as np
from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.layer_norm import LayerNorm

from .register import FLOATS, call_spec, check_choice, check_tensor, optional_positions, register_op
from .shapes import check_positive, known

OPTIONAL = ("weight", "bias", "scale", "shift", "batch_index")


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

    x float32 or bfloat16 [N, C]; weight, bias float32 [C]; scale, shift float32 [B, C], of which row i takes b =
    batch_index[i], int32 [N], or the only one if no batch_index is given (then B = 1); activation one of `ACTIVATIONS`.
    Returns dtype of x, [N, C]; computed in float32.

    Raises ValueError naming the argument or option that does not fit and, from the running module, for the first entry
    of batch_index that is not in 0 to B - 1.
    """
    check_choice("layer_norm", "activation", activation, ACTIVATIONS)
    if batch_index is not None and scale is None and shift is None:
        batch_index = None  # nothing depends on it
    given = dict(zip(OPTIONAL, (weight, bias, scale, shift, batch_index), strict=True))
    return _make(
        x,
        *(argument for argument in given.values() if argument is not None),
        **{name: argument is not None for name, argument in given.items()},
        eps=check_positive("layer_norm", "eps", eps),
        activation=activation,
    )


def _infer(call: relax.Call) -> relax.TensorType:
    rows, channels = check_tensor(call, 0, "x", (None, None), FLOATS)
    known(call, "x", [channels])
    at = optional_positions(call, OPTIONAL, 1)
    batch = None if "batch_index" in at else 1
    for name, place in at.items():
        if name in ("weight", "bias"):
            check_tensor(call, place, name, (channels,), ("float32",))
        elif name == "batch_index":
            check_tensor(call, place, name, (rows,), ("int32",))
        else:
            batch, _ = check_tensor(call, place, name, (batch, channels), ("float32",))
    return relax.TensorType([rows, channels], str(call.args[0].ty.dtype))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    at = optional_positions(call, OPTIONAL, 1)
    given = {name: call.args[place] for name, place in at.items()}
    channels = int(call.ty.shape.values[1])
    modulation = given.get("scale", given.get("shift"))
    batch = 1 if modulation is None else modulation.ty.shape.values[0]
    missing = {
        "weight": lambda: relax.const(np.ones(channels, "float32")),
        "bias": lambda: relax.const(np.zeros(channels, "float32")),
        "scale": lambda: bb.emit(relax.op.zeros((batch, channels), "float32")),
        "shift": lambda: bb.emit(relax.op.zeros((batch, channels), "float32")),
    }
    args = [given[name] if name in given else make() for name, make in missing.items()]
    index = [given["batch_index"]] if "batch_index" in given else []
    spec = LayerNorm(channels, str(call.ty.dtype), bool(index), float(call.attrs["eps"]), str(call.attrs["activation"]))
    return call_spec(bb, spec, [call.args[0], *args, *index], call.ty)


_make = register_op("layer_norm", _infer, _legalize)
