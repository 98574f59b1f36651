"""Reading and writing TIR in few words: find and replace nodes, make loops."""

from collections.abc import Callable

import tvm_ffi
from tvm import ir, tirx

COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def is_number(expr, number: int) -> bool:
    """Whether an expression is this number, written out."""
    return isinstance(expr, tirx.IntImm) and expr.value == number


def collect(node, kind) -> list:
    """All nodes of a kind (or a tuple of kinds) under `node`, in order."""
    found = []
    tvm_ffi.structural_walk(node, (kind, found.append))
    return found


def substitute(node, values: dict):
    """`node` with variables and buffers replaced by what `values` says."""
    return tvm_ffi.structural_map(node, (ir.Var, lambda var: values.get(var, var)))


def for_loop(extent, body: Callable, kind=tirx.ForKind.SERIAL) -> tirx.Stmt:
    """`for i in range(extent): body(i)`"""
    var = tirx.Var("i", "int64")
    return tirx.For(
        var, tirx.IntImm("int64", 0), tirx.IntImm("int64", extent) if isinstance(extent, int) else extent, kind, body(var)
    )


def sequence(statements: list[tirx.Stmt]) -> tirx.Stmt:
    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def plain(loop: tirx.For) -> tirx.For:
    """`loop` without annotations."""
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, loop.body)
