"""Dense convolution, `R.sparse_ops.conv3d`."""

import numpy as np
import tvm
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.conv3d import Conv3d, out_size, reach
from tir_kernels.spec.geometry import Geometry

from .index import triple
from .register import FLOATS, call_kernel, check_choice, check_tensor, op_name, packed_weight, register_op
from .shapes import known


def conv3d(
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = 0,
    dilation: int | tuple[int, int, int] = 1,
    activation: str = "none",
) -> relax.Call:
    """`activation(conv + bias + residual)`, as torch's conv3d with zero padding and without groups, summed in float32.

    x float32 or bfloat16 [B, Cin, D, H, W]; weight, same dtype, [Cout, Cin, kd, kh, kw]; bias float32 [Cout]; residual, dtype
    of x, [B, Cout, D', H', W']; stride, padding (on both sides) and dilation an int or three of them; activation one of
    `ACTIVATIONS`. Returns dtype of x, [B, Cout, D', H', W'], where D' = (D + 2 padding - dilation (kd - 1) - 1) // stride + 1.
    Batch and D, H, W may be symbolic. The weight is packed for the target by a kernel of its own, which folds away where the
    weight is constant. A convolution of images is one with D = kd = 1. In float32, kernels of 3^3 with unit stride and
    dilation go by Winograd's algorithm on a CPU where that pays: what is rounded is then about twice as large as the
    result, in shorter sums, and an infinity or NaN of x may make NaN of outputs next to those that read it.

    Raises ValueError naming the argument whose dtype or shape does not fit, also from the running module when the kernel
    is larger than the padded input.
    """
    check_choice("conv3d", "activation", activation, ACTIVATIONS)
    optional = [arg for arg in (bias, residual) if arg is not None]
    return _make(
        x,
        weight,
        *optional,
        bias=bias is not None,
        residual=residual is not None,
        stride=list(triple("conv3d", "stride", stride, 1)),
        padding=list(triple("conv3d", "padding", padding, 0)),
        dilation=list(triple("conv3d", "dilation", dilation, 1)),
        activation=activation,
    )


def _geometry(call: relax.Call) -> Geometry:
    kernel = (int(extent) for extent in call.args[1].ty.shape.values[2:])
    return Geometry(tuple(kernel), *(tuple(int(axis) for axis in call.attrs[key]) for key in ("stride", "padding", "dilation")))


def _infer(call: relax.Call) -> relax.TensorType:
    batch, cin, *size = check_tensor(call, 0, "x", (None,) * 5, FLOATS)
    dtype = str(call.args[0].ty.dtype)
    known(call, "x", [cin])
    cout, *_ = known(call, "weight", check_tensor(call, 1, "weight", (None, cin, None, None, None), (dtype,)))
    geometry, analyzer = _geometry(call), tvm.sym.Analyzer()
    size_out = [analyzer.simplify(extent) for extent in out_size(size, geometry)]
    if any(analyzer.can_prove(extent < 1) for extent in size_out):
        raise ValueError(
            f"{op_name(call)}: x: expected a size of at least {reach(geometry)}, which the kernel covers, with padding "
            f"{geometry.padding} on both sides, given {tuple(size)}"
        )
    # A size known at run time only may turn out too small: the kernel says so, if the result can be allocated.
    least = out_size((0, 0, 0), geometry)
    shape = [batch, cout, *(n if low >= 0 else tvm.tirx.max(n, 0) for n, low in zip(size_out, least, strict=True))]
    if call.attrs["bias"]:
        check_tensor(call, 2, "bias", (cout,), ("float32",))
    if call.attrs["residual"]:
        check_tensor(call, 2 + bool(call.attrs["bias"]), "residual", tuple(shape), (dtype,))
    return relax.TensorType(shape, dtype)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, weight, *rest = call.args
    cout, cin, *_ = (int(d) for d in weight.ty.shape.values)
    bias = rest.pop(0) if call.attrs["bias"] else relax.const(np.zeros(cout, "float32"))
    size = tuple(extent.value if isinstance(extent, tvm.tirx.IntImm) else None for extent in call.ty.shape.values[2:])
    kernel = kernel_for(Conv3d(cin, cout, _geometry(call), size, str(x.ty.dtype), bool(rest), str(call.attrs["activation"])))
    return call_kernel(bb, kernel.function, [x, packed_weight(bb, weight, kernel.weight), bias, *rest], call.ty)


_make = register_op("conv3d", _infer, _legalize)
