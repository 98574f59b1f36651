"""Small calls run on the calling thread: to wake the others takes some microseconds, more than they would save.

A loop then stands twice in the code, so this is for loops of little code: norms, elementwise kernels, gathers, maps. That of a
matrix product, unrolled over a register tile, would take half as long again to compile.
"""

from math import prod

import tvm
import tvm_ffi
from tvm import tirx

from .schedule_rest.nodes import collect

SMALL = 1 << 15  # elements of all operands: some microseconds of work
LITTLE_CODE = 48  # stores of a loop, unrolled
IN_TURN = "pragma_parallel_stride_pattern"


@tvm.transform.module_pass(opt_level=0, name="SmallCalls")
class SmallCalls:
    """Module pass: where the operands of a kernel have few elements, its parallel loops of little code are serial."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for gv, function in mod.functions_items():
            if isinstance(function, tirx.PrimFunc):
                mod.update_func(gv, with_small_calls(function))
        return tirx.transform.ConvertSSA()(mod)  # both loops of a pair define the same variables


def with_small_calls(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The kernel, with a serial loop beside each parallel one of little code."""
    known, total = _elements(function)
    if known > SMALL:
        return function
    # a number that says nothing of its parts: told that rows are few, TVM finds quotients of them to be 0 and refuses to divide
    few = tirx.reinterpret("int64", tirx.reinterpret("uint64", total)) <= SMALL

    def either(loop: tirx.For) -> tirx.Stmt:
        if loop.kind != tirx.ForKind.PARALLEL or _stores(loop.body) > LITTLE_CODE:
            return loop
        serial = tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, without_turns(loop.body)[1])
        return tirx.IfThenElse(few, serial, loop)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, either)))


def _elements(function: tirx.PrimFunc) -> tuple[int, tirx.Expr]:
    """Of all buffers that the function takes: of those whose shapes are known, and of all."""
    known, total = 0, tirx.IntImm("int64", 0)
    for operand in (param.ty for param in function.params if isinstance(param.ty, tirx.BufferType)):
        size = tirx.IntImm("int64", 1)
        for extent in operand.shape:
            size = size * tirx.Cast("int64", extent)
        total = total + size
        if all(isinstance(extent, tirx.IntImm) for extent in operand.shape):
            known += prod(int(extent) for extent in operand.shape)
    return known, total


def _stores(body: tirx.Stmt) -> int:
    """Stores to buffers, each as often as unrolled loops around it repeat it."""
    count = len(collect(body, tirx.BufferStore))
    for loop in collect(body, tirx.For):
        if loop.kind == tirx.ForKind.UNROLLED and isinstance(loop.extent, tirx.IntImm):
            count += (int(loop.extent) - 1) * _stores(loop.body)
    return count


def without_turns(body: tirx.Stmt) -> tuple[bool, tirx.Stmt]:
    """Whether a parallel loop's tasks are dealt out in turn, and its body without saying so, which a serial loop may not."""
    found = []

    def strip(statement: tirx.AttrStmt) -> tirx.Stmt:
        if statement.attr_key != IN_TURN:
            return statement
        found.append(statement)
        return statement.body

    body = tvm_ffi.structural_map(body, (tirx.AttrStmt, strip))
    return bool(found), body
