"""Linear layer over rows, `R.sparse_ops.linear`."""

import numpy as np
from tvm import relax

from tir_kernels.activation import ACTIVATIONS
from tir_kernels.isa import Isa
from tir_kernels.linear import linear as linear_kernel

from .register import FLOATS, call_kernel, check_choice, check_tensor, packed_weight, register_op


def linear(
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    activation: str = "none",
) -> relax.Call:
    """`activation(x @ weight.T + bias + residual)`, summed in float32.

    x float32 or bfloat16 [N, Cin]; weight, same dtype, [Cout, Cin]; bias float32 [Cout]; residual, dtype of x, [N, Cout];
    activation one of "none", "relu", "silu", "gelu_tanh". Returns dtype of x, [N, Cout]. The weight is packed for the
    target by a kernel of its own, which folds away where the weight is constant.

    Raises ValueError naming the argument whose dtype or shape does not fit.
    """
    check_choice("linear", "activation", activation, ACTIVATIONS)
    optional = [arg for arg in (bias, residual) if arg is not None]
    return _make(x, weight, *optional, bias=bias is not None, residual=residual is not None, activation=activation)


def _optional(call: relax.Call) -> tuple[relax.Expr | None, relax.Expr | None]:
    rest = list(call.args[2:])
    bias = rest.pop(0) if call.attrs["bias"] else None
    return bias, rest.pop(0) if call.attrs["residual"] else None


def _infer(call: relax.Call) -> relax.TensorType:
    rows, cin = check_tensor(call, 0, "x", (None, None), FLOATS)
    dtype = str(call.args[0].ty.dtype)
    cout, _ = check_tensor(call, 1, "weight", (None, cin), (dtype,))
    if call.attrs["bias"]:
        check_tensor(call, 2, "bias", (cout,), ("float32",))
    if call.attrs["residual"]:
        check_tensor(call, 2 + bool(call.attrs["bias"]), "residual", (rows, cout), (dtype,))
    return relax.TensorType([rows, cout], dtype)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, weight = call.args[:2]
    bias, residual = _optional(call)
    cout, cin = (int(d) for d in weight.ty.shape.values)
    dtype = str(x.ty.dtype)
    isa = Isa.of()
    packed = packed_weight(bb, weight, isa, dtype)
    bias = relax.const(np.zeros(cout, "float32")) if bias is None else bias
    kernel = linear_kernel(cin, cout, isa, dtype, residual is not None, str(call.attrs["activation"]))
    args = [x, packed, bias] + ([residual] if residual is not None else [])
    return call_kernel(bb, kernel, args, call.ty)


_make = register_op("linear", _infer, _legalize)
