"""Submanifold convolution after nearest upsampling, `R.sparse_ops.upsampled_conv`."""

from math import prod

import numpy as np
from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.upsampled_conv import AddTaps, tap_groups

from .index import check_map, map_fields
from .linear import linear
from .register import FLOATS, call_spec, check_choice, check_tensor, register_op
from .shapes import known


def upsampled_conv(
    x: relax.Expr,
    weight: relax.Expr,
    kernel_map: relax.Expr,
    parent: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    activation: str = "none",
) -> relax.Call:
    """`sparse_conv(gather_rows(x, parent), weight, kernel_map, ...)`, with products made once for all rows of a parent.

    The same sums in another order. It takes M * taps products of a row with a tap, in place of one for each pair of the map,
    and so pays where many fine sites share a parent: about half of the work on the surface of an object, where four do.

    x float32 or bfloat16 [M, Cin], the rows of the coarse sites; weight, same dtype, [Cout, kx, ky, kz, Cin]; kernel_map from
    `submanifold_map` of the N fine sites, any of which may be missing; parent int32 [N]: the row of x that each takes, as
    `downsample` returns it, or -1 for zeros; bias float32 [Cout]; residual, dtype of x, [N, Cout]; activation one of
    `ACTIVATIONS`. Returns dtype of x, [N, Cout]; sums are float32. While it runs it needs float32 [M, 1024] or, if that is
    more, [M, Cout], and up to two of [N, Cout]. The weight is packed as that of `linear`.

    Raises ValueError naming the argument whose dtype or shape does not fit and, from the running module, when the map was
    built for another number of rows or taps, and for the first parent that is not in -1 to M - 1.
    """
    check_choice("upsampled_conv", "activation", activation, ACTIVATIONS)
    optional = [arg for arg in (bias, residual) if arg is not None]
    has = {"bias": bias is not None, "residual": residual is not None}
    return _make(x, weight, kernel_map, parent, *optional, **has, activation=activation)


def _infer(call: relax.Call) -> relax.TensorType:
    _, cin = check_tensor(call, 0, "x", (None, None), FLOATS)
    dtype = str(call.args[0].ty.dtype)
    shape = check_tensor(call, 1, "weight", (None, None, None, None, cin), (dtype,))
    known(call, "weight", shape)
    check_map(call, 2)
    (rows,) = check_tensor(call, 3, "parent", (None,), ("int32",))
    if call.attrs["bias"]:
        check_tensor(call, 4, "bias", (shape[0],), ("float32",))
    if call.attrs["residual"]:
        check_tensor(call, 4 + bool(call.attrs["bias"]), "residual", (rows, shape[0]), (dtype,))
    return relax.TensorType([rows, shape[0]], dtype)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, weight, kernel_map, parent, *rest = call.args
    cout, *kernel, cin = (int(d) for d in weight.ty.shape.values)
    taps, fields = prod(kernel), map_fields(bb, kernel_map)
    matrix = bb.emit(relax.op.reshape(bb.emit(relax.op.permute_dims(weight, [1, 2, 3, 0, 4])), (taps * cout, cin)))
    zeros = relax.const(np.zeros(cout, "float32"))
    bias = rest.pop(0) if call.attrs["bias"] else zeros
    groups = tap_groups(taps, cout)
    for group in groups:
        columns = relax.op.strided_slice(matrix, [0], [group.start * cout], [group.stop * cout])
        y = bb.emit(linear(x, bb.emit(columns), out_dtype="float32"))  # products are added unrounded
        last = group is groups[-1]
        out_ty = call.ty if last else relax.TensorType(call.ty.shape, "float32")
        residual_dtype = str(rest[0].ty.dtype) if rest else None
        activation = str(call.attrs["activation"]) if last else "none"
        spec = AddTaps(cout, taps, group, residual_dtype, str(out_ty.dtype), activation)
        sums = bb.emit(call_spec(bb, spec, [y, bias, *rest, parent, *fields], out_ty))
        bias, rest = zeros, [sums]
    return sums


_make = register_op("upsampled_conv", _infer, _legalize)
