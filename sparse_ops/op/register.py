"""How an op of ours is made: constructor, type inference and legalization, registered with Relax under one name.

An op prints as `R.sparse_ops.<name>(...)`. `infer` maps the call to its type and is where bad shapes and dtypes are found;
`legalize` turns the call into `call_tir` on kernels built for the current target.
"""

from collections.abc import Callable

import tvm
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.layout import WeightLayout
from tir_kernels.spec import Spec

FLOATS = ("float32", "bfloat16")  # what features may be
PREFIX = "relax.sparse_ops."
SCHEDULED = "tirx.is_scheduled"  # TVM's name of the attribute of kernels that schedule rules leave alone


def register_op(name: str, infer: Callable, legalize: Callable) -> Callable:
    """Register `relax.sparse_ops.<name>` and return `make(*args, **attrs) -> relax.Call`.

    infer(call) -> relax type; legalize(bb, call) -> relax.Expr. Attributes are ints, floats, bools, strings or lists of them.
    """
    op = PREFIX + name
    tvm.ir.register_op_attr(op, "FInferType", lambda call, bb: infer(call))
    tvm.ir.register_op_attr(op, "FLegalize", legalize)
    tvm.ir.register_op_attr(op, "FPurity", True)
    tvm.ir.register_op_attr(op, "RequiresArgumentShapes", False)  # the rows of some results are known at run time only

    def make(*args: relax.Expr, **attrs) -> relax.Call:
        return relax.Call(tvm.ir.Op.get(op), list(args), tvm.ir.make_node("ir.DictAttrs", **attrs))

    return make


def tensor_type(call: relax.Call, position: int, argument: str) -> relax.TensorType:
    """The tensor type of an argument; ValueError when it is no tensor."""
    ty = call.args[position].ty
    if not isinstance(ty, relax.TensorType):
        raise ValueError(f"{op_name(call)}: {argument}: expected a tensor, given {ty}")
    return ty


def optional_positions(call: relax.Call, names: tuple[str, ...], first: int) -> dict[str, int]:
    """Where those of the optional arguments stand that were given, from position `first` on: attributes of their names tell."""
    return {name: place for place, name in enumerate((name for name in names if call.attrs[name]), start=first)}


def op_name(call: relax.Call) -> str:
    """The name of a call's op, as users write it."""
    return str(call.op.name).removeprefix("relax.")


def check_tensor(call: relax.Call, position: int, argument: str, shape: tuple, dtypes: tuple[str, ...]):
    """Check an argument's dtype, rank and the known ones of its dimensions, and return its shape as a list.

    `shape`: one entry a dimension; an int or TIR expression that it must equal, or None for any. Dimensions that cannot be
    compared before run time pass. A tensor whose shape is not known at all, as an op with data-dependent rows returns it,
    must be given one first: by `match_cast`, with a fresh variable for the rows.
    """
    ty = tensor_type(call, position, argument)
    sizes = ("any" if dim is None else str(getattr(dim, "value", dim)) for dim in shape)
    expected = f"[{', '.join(sizes)}] of {' or '.join(dtypes)}"
    if str(ty.dtype) not in dtypes or (ty.ndim >= 0 and ty.ndim != len(shape)):
        raise ValueError(f"{op_name(call)}: {argument}: expected {expected}, given {ty}")
    if not isinstance(ty.shape, relax.ShapeExpr):
        raise ValueError(f"{op_name(call)}: {argument}: expected a known shape {expected} (see match_cast), given {ty}")
    dims = list(ty.shape.values)
    analyzer = tvm.sym.Analyzer()
    for want, have in zip(shape, dims, strict=True):
        if want is not None and analyzer.can_prove(have != want):
            raise ValueError(f"{op_name(call)}: {argument}: expected {expected}, given {ty}")
    return dims


def call_kernel(bb: relax.BlockBuilder, kernel: tvm.tirx.PrimFunc, args: list, out_ty) -> relax.Call:
    """`call_tir` on `kernel`, which joins the module under its own name."""
    name = str(kernel.attrs["global_symbol"])
    kernel = kernel.without_attr("global_symbol").with_attr(SCHEDULED, True)
    function = bb.add_func(with_root_block(kernel), name)
    return relax.call_tir(function, list(args), out_ty=out_ty)


def with_root_block(kernel: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """Relax looks for reshapes among kernels with one input and insists on a block at their root."""
    root = tvm.s_tir.SBlock([], [], [], "root", kernel.body)
    return kernel.with_body(tvm.s_tir.SBlockRealize([], True, root))


def call_spec(bb: relax.BlockBuilder, spec: Spec, args: list, out_ty) -> relax.Call:
    """`call_kernel` on the kernel of `spec` for the current target."""
    return call_kernel(bb, kernel_for(spec).function, args, out_ty)


def packed_weight(bb: relax.BlockBuilder, weight: relax.Expr, layout: WeightLayout) -> relax.Expr:
    """Emit the packing of a weight as a kernel reads it; it folds where constant."""
    return bb.emit(call_kernel(bb, layout.pack, [weight], relax.TensorType(layout.shape, layout.dtype)))


def check_choice(op: str, argument: str, given, choices):
    """ValueError unless `given` is one of `choices`."""
    if given not in choices:
        raise ValueError(f"sparse_ops.{op}: {argument}: expected one of {', '.join(map(repr, choices))}, given {given!r}")
