"""The gradient of a sparse convolution's weight, `R.sparse_ops.sparse_conv_weight_gradient`."""

from collections.abc import Mapping

from tvm import relax

from tir_kernels.spec.weight_gradient import SparseConvWeightGradient

from .index import check_taps, map_fields, triple
from .numbers import check_int
from .register import call_spec, register_op
from .signature import Bound, Signature, features
from .signature import kernel_map as map_argument

SIGNATURE = Signature(
    "sparse_conv_weight_gradient",
    (features("x", "n", "cin"), features("gradient", "m", "cout", dtype="x"), map_argument("n", "m")),
    options=("kernel_size", "groups"),
    known=("cin", "cout"),
    narrows=False,
)


def sparse_conv_weight_gradient(
    x: relax.Expr, gradient: relax.Expr, kernel_map: relax.Expr, kernel_size, groups: int = 1
) -> relax.Call:
    """Of `sparse_conv(x, weight, kernel_map, ...)`, the gradient of the weight, from that of the result.

    out[co, k, ci] = sum over pairs (i, o) of tap k of gradient[o, co] * x[i, ci], with `ci` counted in the group of `co`.

    x float32, bfloat16 or float16 [N, Cin]; gradient, same dtype, [M, Cout], before any activation; kernel_map that of the
    convolution; kernel_size an int or three along x, y, z; groups as in `sparse_conv`. Returns float32 whatever the dtype of x,
    [Cout, kx, ky, kz, Cin / groups]; a tap without pairs has zeros.

    Raises ValueError naming the argument or option that does not fit and, from the running module, when the map was built for
    another number of rows or taps.
    """
    name = "sparse_conv_weight_gradient"
    kernel = triple(name, "kernel_size", kernel_size, 1)
    check_taps(name, kernel)
    groups = check_int(name, "groups", groups, 1)
    return _make(x=x, gradient=gradient, kernel_map=kernel_map, kernel_size=kernel, groups=groups)


def _derive(bound: Bound) -> Mapping:
    """No dimension; only the groups are checked."""
    cin, cout, groups = bound.dims["cin"], bound.dims["cout"], bound.options["groups"]
    if cin % groups or cout % groups:
        bound.refuse(f"groups: expected a divisor of {cin} input and {cout} output channels, given {groups}")
    return {}


def _infer(bound: Bound) -> relax.TensorType:
    cin, cout = bound.dims["cin"], bound.dims["cout"]
    return relax.TensorType([cout, *bound.options["kernel_size"], cin // bound.options["groups"]], "float32")


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = SparseConvWeightGradient(bound.dims["cin"], bound.dims["cout"], bound.dtype, bound.options["groups"])
    args = [bound["x"], bound["gradient"], *map_fields(bb, bound["kernel_map"])]
    return call_spec(bb, spec, args, bound.type)


_make = register_op(SIGNATURE, _legalize, _infer, _derive)
