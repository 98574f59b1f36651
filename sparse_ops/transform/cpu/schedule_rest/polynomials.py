"""Step 3, functions of float32 as polynomials, which vectorize, where the C library's functions do not."""

from functools import cache

from tvm import ir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from tir_kernels import vector_math as activation

from .nodes import substitute

POLYNOMIALS = {
    "tirx.exp": activation.exp,
    "tirx.tanh": activation.tanh,
    "tirx.erf": activation.erf,
    "tirx.sigmoid": lambda x: T.float32(1) / (T.float32(1) + activation.exp(-x)),
}


def polynomial(call: ir.Call) -> tirx.Expr:
    name = getattr(call.op, "name", None)
    if name not in POLYNOMIALS or str(call.ty.dtype) != "float32":
        return call
    argument, bindings, result = _template(name)
    values, lets = {argument: call.args[0]}, []
    for var, value in bindings:
        lets.append((tirx.Var(var.name, "float32"), substitute(value, values)))
        values[var] = lets[-1][0]
    result = substitute(result, values)
    for var, value in reversed(lets):
        result = tirx.Let(var, value, result)
    return result


@cache
def _template(name: str) -> tuple[tirx.Var, list[tuple[tirx.Var, tirx.Expr]], tirx.Expr]:
    """A function of `tir_kernels.vector_math` taken apart: its argument, the variables it binds in turn, its result."""
    argument = tirx.Var("x", "float32")
    with IRBuilder() as builder, T.prim_func():
        T.evaluate(POLYNOMIALS[name](argument))
    body = builder.get().body
    *bindings, result = body.seq if isinstance(body, tirx.SeqStmt) else [body]
    return argument, [(binding.var, binding.value) for binding in bindings], result.value
