"""Dense transposed convolution, `R.sparse_ops.conv_transpose3d`."""

from collections.abc import Mapping

import tvm
from tvm import relax

from tir_kernels.guards import output_size_words
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.conv_transpose3d import ConvTranspose3d, out_size
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.linear import OF_FLOATS

from .conv import OUT_SIZE, SIZE, call_convolution, signature_of
from .index import triple
from .register import check_choice, register_op
from .signature import Bound

NAME = "conv_transpose3d"
GEOMETRY = ("stride", "padding", "output_padding", "dilation")
SIGNATURE = signature_of(NAME, ("cin", "cout"), (*GEOMETRY, "activation", "products"))


def conv_transpose3d(
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr | None = None,
    residual: relax.Expr | None = None,
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = 0,
    output_padding: int | tuple[int, int, int] = 0,
    dilation: int | tuple[int, int, int] = 1,
    activation: str = "none",
    products: str = "float",
) -> relax.Call:
    """`activation(conv_transpose + bias + residual)`, as torch's conv_transpose3d without groups, summed in float32.

    x float32, bfloat16 or float16 [B, Cin, D, H, W]; weight, same dtype, [Cin, Cout, kd, kh, kw]; bias float32 [Cout];
    residual, dtype of x, [B, Cout, D', H', W']; stride, padding (which the result loses on both sides), output_padding (which
    it gains behind, less than stride or dilation) and dilation an int or three of them; activation one of `ACTIVATIONS`.
    Returns dtype of x, [B, Cout, D', H', W'], where D' = (D - 1) stride - 2 padding + dilation (kd - 1) + output_padding + 1.
    Batch and D, H, W may be symbolic. The weight is packed for the target by a kernel of its own, which folds away where the
    weight is constant. A transposed convolution of images is one with D = kd = 1. `products`: "float", or "tf32" as in
    `linear`.

    Raises ValueError naming the argument whose dtype or shape does not fit, also from the running module when x has no voxel
    along an axis or padding leaves no output.
    """
    check_choice(NAME, "activation", activation, ACTIVATIONS)
    check_choice(NAME, "products", products, OF_FLOATS)
    given = {"stride": (stride, 1), "padding": (padding, 0), "output_padding": (output_padding, 0), "dilation": (dilation, 1)}
    axes = {name: triple(NAME, name, numbers, least) for name, (numbers, least) in given.items()}
    most = tuple(max(pair) for pair in zip(axes["stride"], axes["dilation"], strict=True))
    if any(more >= limit for more, limit in zip(axes["output_padding"], most, strict=True)):
        raise ValueError(
            f"sparse_ops.{NAME}: output_padding: expected less than stride or dilation, {most}, given {axes['output_padding']}"
        )
    return _make(x=x, weight=weight, bias=bias, residual=residual, **axes, activation=activation, products=products)


def _geometry(bound: Bound) -> Geometry:
    stride, padding, more, dilation = (bound.options[name] for name in GEOMETRY)
    return Geometry(tuple(bound.shape(("kd", "kh", "kw"))), stride, padding, dilation, True, more)


def _derive(bound: Bound) -> Mapping[str, tvm.tirx.Expr]:
    """The size of the result."""
    size, geometry, analyzer = bound.shape(SIZE), _geometry(bound), tvm.sym.Analyzer()
    size_out = [analyzer.simplify(extent) for extent in out_size(size, geometry)]
    for axis, extents in enumerate(zip(size, size_out, strict=True)):
        if any(analyzer.can_prove(extent < 1) for extent in extents):
            given = [extent.value if isinstance(extent, tvm.tirx.IntImm) else extent for extent in extents]
            empty = isinstance(given[0], int) and given[0] < 1
            bound.refuse(output_size_words(axis + 2, given[0], 0 if empty or not isinstance(given[1], int) else given[1]))
    # A size known at run time only may turn out too small: the kernel says so, if the result can be allocated.
    sizes = (n if isinstance(n, tvm.tirx.IntImm) else tvm.tirx.max(n, 0) for n in size_out)
    return dict(zip(OUT_SIZE, sizes, strict=True))


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    cin, cout, has_residual = bound.dims["cin"], bound.dims["cout"], bound.has("residual")
    activation, products = bound.options["activation"], bound.options["products"] or "float"
    spec = ConvTranspose3d(cin, cout, _geometry(bound), bound.dtype, has_residual, activation, products)
    return call_convolution(bb, bound, spec)


_make = register_op(SIGNATURE, _legalize, derive=_derive)
