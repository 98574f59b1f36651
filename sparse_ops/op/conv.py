"""Dense convolution, `R.sparse_ops.conv3d`."""

from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax

from tir_kernels.cpu import winograd
from tir_kernels.cpu.conv import conv3d as conv_kernel
from tir_kernels.cpu.conv import out_size, pack_filters, packed_shape, reach
from tir_kernels.cpu.isa import Isa
from tir_kernels.cpu.kernel_map import Geometry
from tir_kernels.cpu.vector_math import ACTIVATIONS

from .index import triple
from .register import call_kernel, check_choice, register_op
from .signature import Bound, Epilogue, Signature, features, parameter, weight

SIZE, OUT_SIZE = ("d", "h", "w"), ("d_out", "h_out", "w_out")
SIGNATURE = Signature(
    "conv3d",
    (
        features("x", "batch", "cin", *SIZE),
        weight("weight", "cout", "cin", "kd", "kh", "kw"),
        parameter("bias", "cout", optional=True, epilogue=(0, Epilogue.ADD)),
        features("residual", "batch", "cout", *OUT_SIZE, dtype="x", optional=True, epilogue=(1, Epilogue.ADD)),
    ),
    options=("stride", "padding", "dilation", "activation"),
    known=("cin", "cout", "kd", "kh", "kw"),
    result=("batch", "cout", *OUT_SIZE),
)


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

    x float32 or bfloat16 [B, Cin, D, H, W]; weight, same dtype, [Cout, Cin, kd, kh, kw]; bias float32 [Cout]; residual,
    dtype of x, [B, Cout, D', H', W']; stride, padding (on both sides) and dilation an int or three of them; activation one
    of "none", "relu", "silu", "gelu", "gelu_tanh". Returns dtype of x, [B, Cout, D', H', W'], where
    D' = (D + 2 padding - dilation (kd - 1) - 1) // stride + 1. Batch and D, H, W may be symbolic. The weight is packed for
    the target by a kernel of its own, which folds away where the weight is constant. A convolution of images is one with
    D = kd = 1. In float32, kernels of 3^3 with unit stride and dilation go by Winograd's algorithm where that pays
    (`winograd.pays`): what is rounded is then about twice as large as the result, in shorter sums, and an infinity or NaN of x
    may make NaN of outputs next to those that read it.

    Raises ValueError naming the argument whose dtype or shape does not fit, also from the running module when the kernel
    is larger than the padded input.
    """
    check_choice("conv3d", "activation", activation, ACTIVATIONS)
    return _make(
        x=x,
        weight=weight,
        bias=bias,
        residual=residual,
        stride=triple("conv3d", "stride", stride, 1),
        padding=triple("conv3d", "padding", padding, 0),
        dilation=triple("conv3d", "dilation", dilation, 1),
        activation=activation,
    )


def _geometry(bound: Bound) -> Geometry:
    return Geometry(tuple(bound.shape(("kd", "kh", "kw"))), *(bound.options[key] for key in ("stride", "padding", "dilation")))


def _derive(bound: Bound) -> Mapping[str, tvm.tirx.Expr]:
    """The size of the result."""
    size, geometry, analyzer = bound.shape(SIZE), _geometry(bound), tvm.sym.Analyzer()
    size_out = [analyzer.simplify(extent) for extent in out_size(size, geometry)]
    if any(analyzer.can_prove(extent < 1) for extent in size_out):
        bound.refuse(
            f"x: expected a size of at least {reach(geometry)}, which the kernel covers, with padding "
            f"{geometry.padding} on both sides, given {tuple(size)}"
        )
    # A size known at run time only may turn out too small: the kernel says so, if the result can be allocated.
    least = out_size((0, 0, 0), geometry)
    sizes = (n if low >= 0 else tvm.tirx.max(n, 0) for n, low in zip(size_out, least, strict=True))
    return dict(zip(OUT_SIZE, sizes, strict=True))


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    shape = tuple(bound.shape(("cout", "cin", "kd", "kh", "kw")))
    dtype, isa, geometry = bound.dtype, Isa.of(), _geometry(bound)
    bias = bound["bias"] if bound.has("bias") else relax.const(np.zeros(shape[0], "float32"))
    residual = [bound["residual"]] if bound.has("residual") else []
    options = (isa, bool(residual), bound.options["activation"])
    if _by_winograd(bound, geometry):
        pack, packed = winograd.pack_filters(*shape[:2]), relax.TensorType(winograd.packed_shape(*shape[:2]), "float32")
        kernel = winograd.conv3d(shape[1], shape[0], geometry.padding, *options)
    else:
        pack, packed = pack_filters(shape, isa, dtype), relax.TensorType(*packed_shape(shape, isa, dtype))
        kernel = conv_kernel(shape[1], shape[0], geometry, isa, dtype, *options[1:])
    weight = bb.emit(call_kernel(bb, pack, [bound["weight"]], packed))
    return call_kernel(bb, kernel, [bound["x"], weight, bias, *residual], bound.type)


def _by_winograd(bound: Bound, geometry: Geometry) -> bool:
    """Whether Winograd's algorithm applies and pays; a size that is not known at compile time counts as large."""
    size = (extent.value if isinstance(extent, tvm.tirx.IntImm) else None for extent in bound.type.shape.values[2:])
    applies = geometry == Geometry(winograd.KERNEL, padding=geometry.padding) and bound.dtype == "float32"
    return applies and winograd.pays(bound.dims["cin"], bound.dims["cout"], tuple(size))


_make = register_op(SIGNATURE, _legalize, derive=_derive)
