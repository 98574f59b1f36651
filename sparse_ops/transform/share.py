"""Equal calls of kernels that say so are made once: layers on the same voxels, of any geometry, share one index of them."""

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tir_kernels.sharing import SHARED


@tvm.transform.module_pass(opt_level=0, name="ShareCalls")
class ShareCalls:
    """Module pass: of equal `call_tir`s within a block on kernels with the attribute SHARED the first stays."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        kernels = {gv.name_hint for gv, function in mod.functions_items() if SHARED in (function.attrs or {})}
        if not kernels:
            return mod
        sharing = _Sharing(mod, kernels)
        for gv, function in mod.functions_items():
            if isinstance(function, relax.Function) and not (function.attrs and "Primitive" in function.attrs):
                sharing.builder_.update_func(gv, sharing.visit_expr(function))
        return sharing.builder_.get()


@mutator
class _Sharing(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, kernels: set[str]):
        super().__init__(mod)
        self.kernels = kernels
        self.known: dict[tuple, relax.Var] = {}  # by what was called: the first result of this block
        self.shared: set[relax.Var] = set()  # the results of shared calls and their parts

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.DataflowBlock:
        before, self.known = self.known, {}
        result = super().visit_dataflow_block_(block)
        self.known = before
        return result

    def visit_binding_block_(self, block: relax.BindingBlock) -> relax.BindingBlock:
        before, self.known = self.known, {}
        result = super().visit_binding_block_(block)
        self.known = before
        return result

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        key = self.key(binding.value)
        same = self.known.get(key)
        if same is not None and (isinstance(binding.var, relax.DataflowVar) or not isinstance(same, relax.DataflowVar)):
            self.set_var_remap(binding.var, same)
            return
        super().visit_var_binding_(binding)
        if key is not None:
            self.known[key] = self.visit_expr(binding.var)
            self.shared.add(self.known[key])

    def key(self, value: relax.Expr) -> tuple | None:
        """What makes two values equal that are shared calls, parts of their results, or sizes read from these; else None."""
        if isinstance(value, relax.TupleGetItem):
            source = self.visit_expr(value.tuple_value)
            return (source, value.index) if source in self.shared else None
        if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.Op):
            return None
        if value.op.name == "relax.tensor_to_shape":
            source = self.visit_expr(value.args[0])
            return (source, "shape") if source in self.shared else None
        if value.op.name != "relax.call_tir" or value.args[0].name_hint not in self.kernels:
            return None
        return (value.args[0].name_hint, *map(self.visit_expr, value.args[1].fields))
