"""Dense convolution, `R.sparse_ops.conv3d`."""

from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.guards import edge_words
from tir_kernels.spec import Spec
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.conv3d import PADDING_MODES, Conv3d, out_size, reach
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.linear import OF_FLOATS

from .index import triple
from .register import call_kernel, check_choice, packed_weight, register_op
from .signature import Bound, Epilogue, Signature, features, parameter, weight

SIZE, OUT_SIZE = ("d", "h", "w"), ("d_out", "h_out", "w_out")


def signature_of(name: str, channels_of_weight: tuple[str, str], options: tuple[str, ...]) -> Signature:
    """That of a dense convolution; `channels_of_weight`: "cin" and "cout" in the order of the weight's axes."""
    return Signature(
        name,
        (
            features("x", "batch", "cin", *SIZE),
            weight("weight", *channels_of_weight, "kd", "kh", "kw"),
            parameter("bias", "cout", optional=True, epilogue=(0, Epilogue.ADD)),
            features("residual", "batch", "cout", *OUT_SIZE, dtype="x", optional=True, epilogue=(1, Epilogue.ADD)),
        ),
        options=options,
        known=("cin", "cout", "kd", "kh", "kw"),
        summed=("cin",),
        result=("batch", "cout", *OUT_SIZE),
    )


SIGNATURE = signature_of("conv3d", ("cout", "cin"), ("stride", "padding", "dilation", "padding_mode", "activation", "products"))


def conv3d(
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = 0,
    dilation: int | tuple[int, int, int] = 1,
    padding_mode: str = "zeros",
    activation: str = "none",
    products: str = "float",
) -> relax.Call:
    """`activation(conv + bias + residual)`, as torch's Conv3d without groups, summed in float32.

    x float32, bfloat16 or float16 [B, Cin, D, H, W]; weight, same dtype, [Cout, Cin, kd, kh, kw]; bias float32 [Cout];
    residual, dtype of x, [B, Cout, D', H', W']; stride, padding (on both sides) and dilation an int or three of them;
    padding_mode "zeros", or "replicate": outside of x is its nearest voxel along each axis, however far outside; activation one
    of `ACTIVATIONS`. Returns dtype of x, [B, Cout, D', H', W'], where D' = (D + 2 padding - dilation (kd - 1) - 1) // stride +
    1. Batch and D, H, W may be symbolic. The weight is packed for the target by a kernel of its own, which folds away where the
    weight is constant. A convolution of images is one with D = kd = 1. In float32, kernels of 3^3 and 1 x 3^2 with unit stride
    and dilation go by Winograd's algorithm on a CPU where that pays: what is rounded is then up to about twice as large as the
    result, in shorter sums, and an infinity or NaN of x may make NaN of outputs next to those that read it. `products`:
    "float", or "tf32" as in `linear`.

    Raises ValueError naming the argument whose dtype or shape does not fit, also from the running module when the kernel
    is larger than the padded input, and when an axis without elements has no edge to replicate.
    """
    check_choice("conv3d", "activation", activation, ACTIVATIONS)
    check_choice("conv3d", "padding_mode", padding_mode, PADDING_MODES)
    check_choice("conv3d", "products", products, OF_FLOATS)
    return _make(
        x=x,
        weight=weight,
        bias=bias,
        residual=residual,
        stride=triple("conv3d", "stride", stride, 1),
        padding=triple("conv3d", "padding", padding, 0),
        dilation=triple("conv3d", "dilation", dilation, 1),
        padding_mode=padding_mode,
        activation=activation,
        products=products,
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
    padded = enumerate(zip(size, geometry.padding, strict=True)) if bound.options["padding_mode"] == "replicate" else ()
    for axis, (extent, pad) in padded:
        if pad and analyzer.can_prove(extent < 1):
            bound.refuse(edge_words(axis + 2))
    # A size known at run time only may turn out too small: the kernel says so, if the result can be allocated.
    least = out_size((0, 0, 0), geometry)
    sizes = (n if low >= 0 else tvm.tirx.max(n, 0) for n, low in zip(size_out, least, strict=True))
    return dict(zip(OUT_SIZE, sizes, strict=True))


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    cin, cout, has_residual = bound.dims["cin"], bound.dims["cout"], bound.has("residual")
    size = tuple(extent.value if isinstance(extent, tvm.tirx.IntImm) else None for extent in bound.type.shape.values[2:])
    geometry, options = _geometry(bound), bound.options
    padding_mode = options["padding_mode"] if any(geometry.padding) else "zeros"
    products = options["products"] or "float"
    spec = Conv3d(cin, cout, geometry, size, bound.dtype, has_residual, options["activation"], padding_mode, products)
    return call_convolution(bb, bound, spec)


def call_convolution(bb: relax.BlockBuilder, bound: Bound, spec: Spec) -> relax.Expr:
    """A call of a signature of `signature_of` by the kernel of its description."""
    kernel = kernel_for(spec)
    bias = bound["bias"] if bound.has("bias") else relax.const(np.zeros(bound.dims["cout"], "float32"))
    residual = [bound["residual"]] if bound.has("residual") else []
    args = [bound["x"], packed_weight(bb, bound["weight"], kernel.weight), bias, *residual]
    return call_kernel(bb, kernel.function, args, bound.type)


_make = register_op(SIGNATURE, _legalize, derive=_derive)
