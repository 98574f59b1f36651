"""A module whose kernels find garbage in their outputs: what a kernel forgets to write becomes visible."""

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from sparse_ops.build import unchecked

INTEGER = -2139062143  # garbage where there is no NaN


def poisoned(mod: tvm.IRModule) -> tvm.IRModule:
    """`mod`, after LegalizeOps, with every output of every kernel filled before the kernel runs: NaN, or a large integer.

    Every `call_tir` becomes a `call_tir_inplace` on tensors full of garbage. Compile the result by
    `compile_poisoned`: the default pipeline folds those tensors into constants, which the first run would overwrite.
    """
    poisoner = _Poisoner(mod)
    for gv, function in mod.functions_items():
        if isinstance(function, relax.Function):
            poisoner.builder_.update_func(gv, poisoner.visit_expr(function))
    return poisoner.builder_.get()


def compile_poisoned(mod: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Executable:
    """Compile what `poisoned` returns, without folding and fusion."""
    with unchecked():  # the virtual machine checks dtypes and shapes, and each kernel's own checks are a third of its code
        return tvm.compile(mod, target=target, relax_pipeline=relax.pipeline.default_build_pipeline())


@mutator
class _Poisoner(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if call.op != tvm.ir.Op.get("relax.call_tir"):
            return call
        function, args = call.args[0], list(call.args[1].fields)
        (out,) = call.ty_args
        outputs = list(out.fields) if isinstance(out, relax.TupleType) else [out]
        garbage = [self.builder_.emit(_garbage(ty)) for ty in outputs]
        places = list(range(len(args), len(args) + len(garbage)))
        return relax.call_tir_inplace(function, [*args, *garbage], places, outputs if len(outputs) > 1 else out)


def _garbage(ty: relax.TensorType) -> relax.Call:
    dtype = str(ty.dtype)
    value = float("nan") if "float" in dtype else INTEGER
    return relax.op.broadcast_to(relax.const(value, dtype), ty.shape)  # `full` fails on NaN
