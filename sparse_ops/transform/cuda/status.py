"""What the kernels of a call refuse comes to the host once, at the end of the call.

A kernel on a device cannot raise. One that looks for errors takes a status buffer (`tir_kernels.cuda.guards`), which
legalization writes as `kernel_status()`. Here each function gets one such buffer, empty at its start, and reads it at its end.
"""

from functools import cache

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.script import tirx as T

from tir_kernels import script
from tir_kernels.cuda.gpu import on_device
from tir_kernels.cuda.guards import match_status
from tir_kernels.guards import NOWHERE, READ_STATUS, STATUS_FIRST, STATUS_SIZE

from ...op.register import STATUS, call_kernel


@tvm.transform.module_pass(opt_level=0, name="ReadStatus")
class ReadStatus:
    """Module pass: one status buffer a function, in place of every `kernel_status()`, which is read before it returns.

    Run it behind ToNonDataflow and RemovePurityChecking and before CallTIRRewrite.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        reading = _Reading(mod)
        for gv, function in mod.functions_items():
            if isinstance(function, relax.Function):
                reading.rewrite(gv, function)
        return reading.builder_.get()


@mutator
class _Reading(PyExprMutator):
    def __init__(self, mod: tvm.IRModule):
        super().__init__(mod)
        self.status: relax.Var | None = None

    def rewrite(self, gv: tvm.ir.GlobalVar, function: relax.Function) -> None:
        self.status = relax.Var("status", relax.TensorType([STATUS_SIZE], "int64"))
        self.used = False
        changed = self.visit_expr(function)
        if not self.used:
            return
        empty = call_kernel(self.builder_, empty_status(), [], self.status.ty)
        start = relax.BindingBlock([relax.VarBinding(self.status, empty)])
        read = relax.Var("read", relax.TupleType([]))
        # What is returned is a variable of the body, so the read stands behind everything that makes it.
        call = relax.Call(relax.ExternFunc(READ_STATUS), [self.status], ty_args=[relax.TupleType([])])
        body = relax.SeqExpr(
            [start, *changed.body.blocks, relax.BindingBlock([relax.VarBinding(read, call)])], changed.body.body
        )
        made = relax.Function(changed.params, body, changed.ret_ty, changed.is_pure, changed.attrs)
        self.builder_.update_func(gv, made)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if call.op == tvm.ir.Op.get(STATUS):
            self.used = True
            return self.status
        return call


@cache
def empty_status() -> tvm.tirx.PrimFunc:
    """(status int64 [STATUS_SIZE]): no error."""

    @script.prim_func(s_tir=True)
    def kernel(status_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "empty_status"})
        status = T.meta_var(match_status(status_))
        with T.launch_thread("blockIdx.x", 1):
            thread = T.launch_thread("threadIdx.x", STATUS_SIZE)
            status[thread] = T.if_then_else(thread == STATUS_FIRST, T.int64(NOWHERE), T.int64(0))

    return on_device(kernel)
