"""How an op of ours is made: a signature, type inference and legalization, registered with Relax under one name.

An op prints as `R.sparse_ops.<name>(...)`. Type inference is where bad shapes and dtypes are found; legalization turns a call
into `call_tir` on kernels built for the current target.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.guards import REPORTS, STATUS_SIZE
from tir_kernels.layout import WeightLayout
from tir_kernels.spec import Spec

from .signature import GIVEN, Bound, Derive, Signature, bind

PREFIX = "relax."
STATUS = PREFIX + "sparse_ops.kernel_status"
SCHEDULED = "tirx.is_scheduled"  # TVM's name of the attribute of kernels that schedule rules leave alone
RUNS_IN = "sparse_ops.runs_in"  # the attribute of kernels that pack a weight: in which numbers its layer multiplies


class Op:
    """A registered op: called with its arguments and options by name, it makes a Relax call."""

    def __init__(self, signature: Signature):
        self.signature = signature
        self._op = tvm.ir.Op.get(PREFIX + signature.qualified)

    def __call__(self, **values) -> relax.Call:
        names = self.signature.names
        given = {name: values[name] for name in names if values.get(name) is not None}
        options = {name: value for name, value in values.items() if name not in names and value is not None}
        return self.make(given, options)

    def make(self, arguments: Mapping[str, relax.Expr], options: Mapping[str, Any]) -> relax.Call:
        """A call of named arguments and options, without any that were not given."""
        signature = self.signature
        names = [argument.name for argument in signature.with_index]
        if wrong := [*(arguments.keys() - set(names)), *(options.keys() - set(signature.with_returns_index))]:
            raise ValueError(f"{signature.qualified}: has no {', '.join(sorted(wrong))}")
        attributes = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        attributes[GIVEN] = [name for name in names if name in arguments and signature.by_name[name].optional]
        args = [arguments[name] for name in names if name in arguments]
        return relax.Call(self._op, args, tvm.ir.make_node("ir.DictAttrs", **attributes))

    def with_more(self, call: relax.Call, arguments: Mapping[str, relax.Expr], options: Mapping[str, Any]) -> relax.Call:
        """A call of this op with further or other arguments and options."""
        before = {name: value for name, value in self.signature.options_of(call).items() if value is not None}
        return self.make(self.signature.arguments_of(call) | dict(arguments), before | dict(options))


OPS: dict[str, Op] = {}  # by name


def op_of(call: relax.Call) -> Op | None:
    """The op of ours that a call is of, if it is of one."""
    name = getattr(call.op, "name", "")
    return OPS.get(name.removeprefix(PREFIX + "sparse_ops.")) if name.startswith(PREFIX + "sparse_ops.") else None


def register_op(
    signature: Signature,
    legalize: Callable[[relax.BlockBuilder, Bound], relax.Expr],
    infer: Callable[[Bound], relax.Type] | None = None,
    derive: Derive | None = None,
) -> Op:
    """Register the op of `signature`.

    legalize(bb, bound) -> what computes it; infer(bound) -> its type, by default a tensor of the signature's `result`;
    `derive`: see `bind`.
    """
    name = PREFIX + signature.qualified

    def infer_result(bound: Bound) -> relax.Type:
        return relax.TensorType(bound.shape(signature.result), bound.dtype)

    infer = infer or infer_result
    tvm.ir.register_op_attr(name, "FInferType", lambda call, bb: infer(bind(signature, call, derive)))
    tvm.ir.register_op_attr(name, "FLegalize", lambda bb, call: legalize(bb, bind(signature, call, derive)))
    tvm.ir.register_op_attr(name, "FPurity", True)
    tvm.ir.register_op_attr(name, "RequiresArgumentShapes", False)  # the rows of some results are known at run time only
    OPS[signature.name] = op = Op(signature)
    return op


def flat_types(ty: relax.Type) -> list[relax.TensorType]:
    """The tensors of a type, tuples taken apart."""
    return [ty] if isinstance(ty, relax.TensorType) else [tensor for field in ty.fields for tensor in flat_types(field)]


def status() -> relax.Call:
    """The buffer into which the kernels of a function write what they refuse; see `transform.cuda.status`."""
    return relax.Call(tvm.ir.Op.get(STATUS), [])


tvm.ir.register_op_attr(STATUS, "FInferType", lambda call, bb: relax.TensorType([STATUS_SIZE], "int64"))
tvm.ir.register_op_attr(STATUS, "FPurity", True)


def call_kernel(bb: relax.BlockBuilder, kernel: tvm.tirx.PrimFunc, args: list, out_ty) -> relax.Call:
    """`call_tir` on `kernel`, which joins the module under its own name. One that reports errors gets the status buffer too."""
    if REPORTS in kernel.attrs:
        args = [*args, bb.emit(status())]
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


def packed_weight(
    bb: relax.BlockBuilder, weight: relax.Expr, layout: WeightLayout | None, products: str = "float"
) -> relax.Expr:
    """Emit the packing of a weight as a kernel reads it; it folds where constant. `products`: what the layer asked for.

    Without a layout kernels read the weight as it is.
    """
    if layout is None:
        return weight
    runs_in = str(weight.ty.dtype) if layout.with_apart is None else products
    pack = layout.pack.with_attr(RUNS_IN, runs_in)
    return bb.emit(call_kernel(bb, pack, [weight], relax.TensorType(layout.shape, layout.dtype)))


def check_choice(op: str, argument: str, given, choices):
    """ValueError unless `given` is one of `choices`."""
    if given not in tuple(choices):
        raise ValueError(f"sparse_ops.{op}: {argument}: expected one of {', '.join(map(repr, choices))}, given {given!r}")
