"""Linear layer over rows, `R.sparse_ops.linear`."""

import numpy as np
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.linear import Linear

from .register import FLOATS, call_kernel, check_choice, check_tensor, optional_positions, packed_weight, register_op

OPTIONAL = ("bias", "residual", "gate", "batch_index")


def linear(
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    activation: str = "none",
    gate: relax.Expr | None = None,
    batch_index: relax.Expr | None = None,
    out_dtype: str | None = None,
) -> relax.Call:
    """`activation(gate[b] * (x @ weight.T + bias) + residual)`, summed in float32.

    x float32 or bfloat16 [N, Cin]; weight, same dtype, [Cout, Cin]; bias float32 [Cout]; residual, dtype of x, [N, Cout]; gate
    float32 [B, Cout], of which row i takes b = batch_index[i], int32 [N], or the only one if no batch_index is given (then B =
    1); activation one of `ACTIVATIONS`. Returns [N, Cout] of the dtype of x, or of `out_dtype`. The weight is packed for the
    target by a kernel of its own, which folds away where the weight is constant.

    Raises ValueError naming the argument whose dtype or shape does not fit and, from the running module, for the first entry
    of batch_index that is not in 0 to B - 1.
    """
    check_choice("linear", "activation", activation, ACTIVATIONS)
    check_choice("linear", "out_dtype", out_dtype, (None, *FLOATS))
    if gate is None:
        batch_index = None  # nothing depends on it
    given = dict(zip(OPTIONAL, (bias, residual, gate, batch_index), strict=True))
    return _make(
        x,
        weight,
        *(argument for argument in given.values() if argument is not None),
        **{name: argument is not None for name, argument in given.items()},
        activation=activation,
        out_dtype=out_dtype or "",
    )


def _infer(call: relax.Call) -> relax.TensorType:
    rows, cin = check_tensor(call, 0, "x", (None, None), FLOATS)
    dtype = str(call.args[0].ty.dtype)
    cout, _ = check_tensor(call, 1, "weight", (None, cin), (dtype,))
    at = optional_positions(call, OPTIONAL, 2)
    batch = None if "batch_index" in at else 1
    expected = {
        "bias": ((cout,), "float32"),
        "residual": ((rows, cout), dtype),
        "gate": ((batch, cout), "float32"),
        "batch_index": ((rows,), "int32"),
    }
    for name, place in at.items():
        shape, dtype_of = expected[name]
        check_tensor(call, place, name, shape, (dtype_of,))
    return relax.TensorType([rows, cout], str(call.attrs["out_dtype"]) or dtype)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, weight = call.args[:2]
    given = {name: call.args[place] for name, place in optional_positions(call, OPTIONAL, 2).items()}
    cout, cin = (int(d) for d in weight.ty.shape.values)
    has = ("residual" in given, str(call.attrs["activation"]), "gate" in given, "batch_index" in given)
    kernel = kernel_for(Linear(cin, cout, str(x.ty.dtype), *has, str(call.ty.dtype)))
    packed = packed_weight(bb, weight, kernel.weight)
    bias = given.pop("bias", None)
    bias = relax.const(np.zeros(cout, "float32")) if bias is None else bias
    return call_kernel(bb, kernel.function, [x, packed, bias, *given.values()], call.ty)


_make = register_op("linear", _infer, _legalize)
