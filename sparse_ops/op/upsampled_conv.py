"""Submanifold convolution after nearest upsampling, `R.sparse_ops.upsampled_conv`."""

from math import prod

import numpy as np
from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.linear import OF_FLOATS
from tir_kernels.spec.upsampled_conv import AddTaps, tap_groups

from .index import map_fields
from .linear import linear
from .register import call_spec, check_choice, register_op
from .signature import Bound, Epilogue, Signature, features, index, parameter, weight
from .signature import kernel_map as map_argument

SIGNATURE = Signature(
    "upsampled_conv",
    (
        features("x", "m", "cin"),
        weight("weight", "cout", "kx", "ky", "kz", "cin"),
        map_argument("n", "n"),
        index("parent", "n"),
        parameter("bias", "cout", optional=True, epilogue=(0, Epilogue.ADD)),
        features("residual", "n", "cout", dtype="x", optional=True, epilogue=(1, Epilogue.ADD)),
    ),
    options=("activation", "products"),
    known=("cin", "cout", "kx", "ky", "kz"),
    result=("n", "cout"),
)


def upsampled_conv(
    x: relax.Expr,
    weight: relax.Expr,
    kernel_map: relax.Expr,
    parent: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    activation: str = "none",
    products: str = "float",
) -> relax.Call:
    """`sparse_conv(gather_rows(x, parent), weight, kernel_map, ...)`, with products made once for all rows of a parent.

    The same sums in another order. It takes M * taps products of a row with a tap, in place of one for each pair of the map,
    and so pays where many fine sites share a parent: about half of the work on the surface of an object, where four do.

    x float32, bfloat16 or float16 [M, Cin], the rows of the coarse sites; weight, same dtype, [Cout, kx, ky, kz, Cin];
    kernel_map from `submanifold_map` of the N fine sites, any of which may be missing; parent int32 [N]: the row of x that each
    takes, as `downsample` returns it, or -1 for zeros; bias float32 [Cout]; residual, dtype of x, [N, Cout]; activation one of
    `ACTIVATIONS`. Returns dtype of x, [N, Cout]; sums are float32. While it runs it needs float32 [M, 1024] or, if that is
    more, [M, Cout], and up to two of [N, Cout]. The weight is packed as that of `linear`. `products`: "float", or "tf32" as in
    `linear`.

    Raises ValueError naming the argument whose dtype or shape does not fit and, from the running module, when the map was
    built for another number of rows or taps, and for the first parent that is not in -1 to M - 1.
    """
    check_choice("upsampled_conv", "activation", activation, ACTIVATIONS)
    check_choice("upsampled_conv", "products", products, OF_FLOATS)
    options = {"activation": activation, "products": products}
    return _make(x=x, weight=weight, kernel_map=kernel_map, parent=parent, bias=bias, residual=residual, **options)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    cin, cout = bound.dims["cin"], bound.dims["cout"]
    taps, fields = prod(bound.shape(("kx", "ky", "kz"))), map_fields(bb, bound["kernel_map"])
    by_tap = bb.emit(relax.op.permute_dims(bound["weight"], [1, 2, 3, 0, 4]))
    matrix = bb.emit(relax.op.reshape(by_tap, (taps * cout, cin)))
    zeros = relax.const(np.zeros(cout, "float32"))
    bias = bound["bias"] if bound.has("bias") else zeros
    rest = [bound["residual"]] if bound.has("residual") else []
    groups = tap_groups(taps, cout)
    for group in groups:
        columns = relax.op.strided_slice(matrix, [0], [group.start * cout], [group.stop * cout])
        options = {"out_dtype": "float32", "products": bound.options["products"] or "float"}  # they are added unrounded
        y = bb.emit(linear(bound["x"], bb.emit(columns), **options))
        last = group is groups[-1]
        out_ty = bound.type if last else relax.TensorType(bound.type.shape, "float32")
        residual_dtype = str(rest[0].ty.dtype) if rest else None
        activation = bound.options["activation"] if last else "none"
        spec = AddTaps(cout, taps, group, residual_dtype, str(out_ty.dtype), activation)
        sums = bb.emit(call_spec(bb, spec, [y, bias, *rest, bound["parent"], *fields], out_ty))
        bias, rest = zeros, [sums]
    return sums


_make = register_op(SIGNATURE, _legalize)
