"""Sparse convolution through a kernel map, `R.sparse_ops.sparse_conv`."""

import numpy as np
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.sparse_conv import SparseConv

from .index import check_coords, check_map, map_fields
from .register import (
    FLOATS,
    call_kernel,
    check_choice,
    check_tensor,
    packed_weight,
    register_op,
)


def sparse_conv(
    x: relax.Expr,
    weight: relax.Expr,
    kernel_map: relax.Expr,
    coords_out: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    activation: str = "none",
) -> relax.Call:
    """Gather–GEMM–scatter: out[o] = activation(bias + residual[o] + sum over pairs (i, o) of tap k of W[:, k] @ x[i]).

    x float32 or bfloat16 [N, Cin]; weight, same dtype, [Cout, kx, ky, kz, Cin] (spconv's layout); kernel_map from
    `submanifold_map`, `strided_map` or `inverse_map`; coords_out int32 [M, 4]: of these only the number of rows matters; bias
    float32 [Cout]; residual, dtype of x, [M, Cout]; activation one of `ACTIVATIONS`. Returns dtype of x, [M, Cout]; sums are
    float32, bias first, then taps in order.

    Raises ValueError naming the argument whose dtype or shape does not fit and, from the running module, when the map was
    built for another number of rows or taps.
    """
    check_choice("sparse_conv", "activation", activation, ACTIVATIONS)
    optional = [arg for arg in (bias, residual) if arg is not None]
    return _conv(
        x,
        weight,
        kernel_map,
        coords_out,
        *optional,
        bias=bias is not None,
        residual=residual is not None,
        activation=activation,
    )


def _infer(call: relax.Call) -> relax.TensorType:
    _, cin = check_tensor(call, 0, "x", (None, None), FLOATS)
    dtype = str(call.args[0].ty.dtype)
    cout = check_tensor(call, 1, "weight", (None, None, None, None, cin), (dtype,))[0]
    check_map(call, 2)
    rows = check_coords(call, 3, "coords_out")
    if call.attrs["bias"]:
        check_tensor(call, 4, "bias", (cout,), ("float32",))
    if call.attrs["residual"]:
        check_tensor(call, 4 + bool(call.attrs["bias"]), "residual", (rows, cout), (dtype,))
    return relax.TensorType([rows, cout], dtype)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, weight, kernel_map, _, *rest = call.args
    cout, *size, cin = (int(d) for d in weight.ty.shape.values)
    options = (bool(call.attrs["residual"]), str(call.attrs["activation"]))
    kernel = kernel_for(SparseConv(cin, cout, tuple(size), str(x.ty.dtype), *options))
    packed = packed_weight(bb, weight, kernel.weight)
    bias = rest.pop(0) if call.attrs["bias"] else relax.const(np.zeros(cout, "float32"))
    return call_kernel(bb, kernel.function, [x, packed, bias, *rest, *map_fields(bb, kernel_map)], call.ty)


_conv = register_op("sparse_conv", _infer, _legalize)
