"""Linear layer over rows, `R.sparse_ops.linear`."""

import numpy as np
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.linear import PRODUCTS, Linear

from .register import call_kernel, check_choice, packed_weight, register_op
from .signature import FLOATS, Bound, Epilogue, Signature, Table, features, index, parameter, weight

SIGNATURE = Signature(
    "linear",
    (
        features("x", "n", "cin"),
        weight("weight", "cout", "cin"),
        parameter("bias", "cout", optional=True, epilogue=(0, Epilogue.ADD)),
        features("residual", "n", "cout", dtype="x", optional=True, epilogue=(2, Epilogue.ADD)),
        parameter("gate", Table("batch", "batch_index"), "cout", optional=True, epilogue=(1, Epilogue.MULTIPLY)),
        index("batch_index", "n", optional=True),
    ),
    options=("activation", "out_dtype", "products"),
    known=("cin", "cout"),
    summed=("cin",),
    result=("n", "cout"),
)


def linear(
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    activation: str = "none",
    gate: relax.Expr | None = None,
    batch_index: relax.Expr | None = None,
    out_dtype: str | None = None,
    products: str = "float",
) -> relax.Call:
    """`activation(gate[b] * (x @ weight.T + bias) + residual)`, summed in float32.

    x float32, bfloat16 or float16 [N, Cin]; weight, same dtype, [Cout, Cin]; bias float32 [Cout]; residual, dtype of x, [N,
    Cout]; gate float32 [B, Cout], of which row i takes b = batch_index[i], int32 [N], or the only one if no batch_index is
    given (then B = 1); activation one of `ACTIVATIONS`. Returns [N, Cout] of the dtype of x, or of `out_dtype`. The weight is
    packed for the target by a kernel of its own, which folds away where the weight is constant.

    `products` "int8": rows of x and rows of the weight are rounded to integers of at least 8 bits, as `tir_kernels.spec.linear`
    says, where the target gains by it; "int7" allows 7 bits of x. Elsewhere nothing changes.
    "tf32": float32 is rounded to 11 bits as it is multiplied, on CUDA devices alone; other types are multiplied as they are.

    Raises ValueError naming the argument whose dtype or shape does not fit and, from the running module, for the first entry
    of batch_index that is not in 0 to B - 1.
    """
    check_choice("linear", "activation", activation, ACTIVATIONS)
    check_choice("linear", "out_dtype", out_dtype, (None, *FLOATS))
    check_choice("linear", "products", products, PRODUCTS)
    if gate is None:
        batch_index = None  # nothing depends on it
    return _make(
        x=x,
        weight=weight,
        bias=bias,
        residual=residual,
        gate=gate,
        batch_index=batch_index,
        activation=activation,
        out_dtype=out_dtype,
        products=products,
    )


def _infer(bound: Bound) -> relax.TensorType:
    return relax.TensorType(bound.shape(SIGNATURE.result), bound.options["out_dtype"] or bound.dtype)


def spec_of(bound: Bound) -> Linear:
    """What kernel a call is for."""
    has = (bound.has("residual"), bound.options["activation"], bound.has("gate"), bound.has("batch_index"))
    sizes = bound.dims["cin"], bound.dims["cout"]
    return Linear(*sizes, bound.dtype, *has, str(bound.type.dtype), bound.options["products"] or "float")


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    cout, given, spec = bound.dims["cout"], dict(bound.arguments), spec_of(bound)
    kernel = kernel_for(spec)
    x, packed = given.pop("x"), packed_weight(bb, given.pop("weight"), kernel.weight, spec.products)
    bias = given.pop("bias", None)
    bias = relax.const(np.zeros(cout, "float32")) if bias is None else bias
    return call_kernel(bb, kernel.function, [x, packed, bias, *given.values()], bound.type)


_make = register_op(SIGNATURE, _legalize, _infer)
