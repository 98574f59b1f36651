"""Sparse convolution through a kernel map, `R.sparse_ops.sparse_conv`."""

from collections.abc import Mapping

import numpy as np
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.linear import PRODUCTS
from tir_kernels.spec.sparse_conv import SparseConv

from .index import map_fields
from .numbers import check_int
from .register import call_kernel, check_choice, packed_weight, register_op
from .signature import Bound, Epilogue, Signature, coordinates, features, parameter, weight
from .signature import kernel_map as map_argument

SIGNATURE = Signature(
    "sparse_conv",
    (
        features("x", "n", "cin"),
        weight("weight", "cout", "kx", "ky", "kz", "group_cin"),
        map_argument("n", "m"),
        coordinates("coords_out", "m"),
        parameter("bias", "cout", optional=True, epilogue=(0, Epilogue.ADD)),
        features("residual", "m", "cout", dtype="x", optional=True, epilogue=(1, Epilogue.ADD)),
    ),
    options=("activation", "groups", "products"),
    known=("cin", "cout", "kx", "ky", "kz", "group_cin"),
    result=("m", "cout"),
)


def sparse_conv(
    x: relax.Expr,
    weight: relax.Expr,
    kernel_map: relax.Expr,
    coords_out: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    activation: str = "none",
    groups: int = 1,
    products: str = "float",
) -> relax.Call:
    """Gather–GEMM–scatter: out[o] = activation(bias + residual[o] + sum over pairs (i, o) of tap k of W[:, k] @ x[i]).

    x float32, bfloat16 or float16 [N, Cin]; weight, same dtype, [Cout, kx, ky, kz, Cin / groups] (as in spconv); kernel_map
    from `submanifold_map`, `strided_map` or `inverse_map`; coords_out int32 [M, 4]: of these only the number of rows matters;
    bias float32 [Cout]; residual, dtype of x, [M, Cout]; activation one of `ACTIVATIONS`. Returns dtype of x, [M, Cout]; sums
    are float32, bias first, then taps in order.

    `groups`, which divides Cin and Cout: output channel c reads the input channels of group c // (Cout / groups) alone, as in
    torch; with as many groups as input channels the convolution is depthwise, of Cout / Cin channels to each.

    `products`: as in `linear`, integers rounded for each tap and output channel apart; floats with groups and few channels.

    Raises ValueError naming the argument whose dtype or shape does not fit and, from the running module, when the map was
    built for another number of rows or taps.
    """
    check_choice("sparse_conv", "activation", activation, ACTIVATIONS)
    check_choice("sparse_conv", "products", products, PRODUCTS)
    return _make(
        x=x,
        weight=weight,
        kernel_map=kernel_map,
        coords_out=coords_out,
        bias=bias,
        residual=residual,
        activation=activation,
        groups=check_int("sparse_conv", "groups", groups, 1),
        products=products,
    )


def _derive(bound: Bound) -> Mapping:
    """No dimension; only the groups are checked."""
    cin, cout, groups = bound.dims["cin"], bound.dims["cout"], bound.options["groups"] or 1
    if cin % groups or cout % groups:
        bound.refuse(f"groups: expected a divisor of {cin} input and {cout} output channels, given {groups}")
    depth = bound.dims["group_cin"]
    if depth * groups != cin:
        weight = [cout, *bound.shape(("kx", "ky", "kz")), depth]
        words = f" in {groups} groups" if groups > 1 else ""
        bound.refuse(f"x: expected {depth * groups} channels, as weight {weight}{words} takes, given {cin}")
    return {}


def spec_of(bound: Bound) -> SparseConv:
    """What kernel a call is for."""
    cin, cout, size = bound.dims["cin"], bound.dims["cout"], tuple(bound.shape(("kx", "ky", "kz")))
    options, has_residual = bound.options, bound.has("residual")
    groups, products = options["groups"] or 1, options["products"] or "float"
    return SparseConv(cin, cout, size, bound.dtype, has_residual, options["activation"], groups, products)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    cout, kernel = bound.dims["cout"], kernel_for(spec_of(bound))
    packed = packed_weight(bb, bound["weight"], kernel.weight)
    bias = bound["bias"] if bound.has("bias") else relax.const(np.zeros(cout, "float32"))
    residual = [bound["residual"]] if bound.has("residual") else []
    args = [bound["x"], packed, bias, *residual, *map_fields(bb, bound["kernel_map"])]
    return call_kernel(bb, kernel.function, args, bound.type)


_make = register_op(SIGNATURE, _legalize, derive=_derive)
