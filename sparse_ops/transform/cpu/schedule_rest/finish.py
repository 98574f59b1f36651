"""Step 3: the loops that step 1 has annotated become what they are to be."""

from math import prod

import tvm
import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.sym import Analyzer
from tvm.sym.analyzer import ProofStrength

from ....op.register import SCHEDULED, with_root_block
from .constants import FUSE, PARTIAL, VECTOR
from .nodes import COMPARISONS, collect, for_loop, plain, substitute
from .partial_sums import partial_loop
from .polynomials import polynomial
from .vectors import vector_loop


def finish(func: tirx.PrimFunc) -> tirx.PrimFunc:
    body = _simplified(func, _proven(func.body)).body
    body = tvm_ffi.structural_map(body, (tirx.For, _loop))
    body = tvm_ffi.structural_mutate(body, (tirx.For, _fused))
    body = tvm_ffi.structural_map(body, [(ir.Call, polynomial), (tirx.SeqStmt, _sized)])
    return with_root_block(_simplified(func, body)).with_attr(SCHEDULED, True)


def _simplified(func: tirx.PrimFunc, body: tirx.Stmt) -> tirx.PrimFunc:
    return s_tir.transform.StmtSimplify()(tvm.IRModule({"main": func.with_body(body)}))["main"]


def _proven(body: tirx.Stmt) -> tirx.Stmt:
    """`body` without comparisons that follow from the bounds of the loops, symbolic ones too, which the simplifier leaves."""
    analyzer = Analyzer()

    def loop(node, mutator):
        analyzer.bind(node.loop_var, ir.Range(node.min, node.extent))
        return mutator.default_mutate(node)

    def comparison(node, mutator):
        return tirx.const(True, "bool") if analyzer.can_prove(node, ProofStrength.SYMBOLIC_BOUND) else node

    return tvm_ffi.structural_mutate(body, [(tirx.For, loop), (COMPARISONS, comparison)])


def _sized(sequence: tirx.SeqStmt) -> tirx.SeqStmt:
    """Access buffers of symbolic size under another name than they are allocated.

    TVM would once more infer how much of each is used; for loops that are fused by now its formulas are wrong, or divide by
    sizes that are zero. A last access, which later passes remove, keeps the memory from being used twice before.
    """
    statements, last = [], []
    for statement in sequence.seq:
        buffer = statement.buffer if isinstance(statement, tirx.AllocBuffer) else None
        if buffer is None or all(isinstance(dim, tirx.IntImm) for dim in buffer.shape):
            statements.append(statement)
            continue
        memory = tirx.decl_buffer(buffer.shape, buffer.dtype, buffer.name)
        statements += [tirx.AllocBuffer(memory), tirx.DeclBuffer(buffer, data=memory.data)]
        last.append(tirx.Evaluate(tirx.BufferLoad(memory, [tirx.IntImm("int64", 0)] * len(buffer.shape))))
    return tirx.SeqStmt([*statements, *last])


def _loop(loop: tirx.For) -> tirx.Stmt:
    if VECTOR not in loop.annotations and PARTIAL not in loop.annotations:
        return loop
    if str(loop.loop_var.ty.dtype) != "int64":
        return plain(loop)
    if PARTIAL in loop.annotations:
        return partial_loop(loop)
    named = collect(loop.body, (tirx.Bind, tirx.AllocBuffer))  # only once, so the body cannot stand in several loops
    return plain(loop) if named else vector_loop(loop)


def _fused(loop: tirx.For, mutator) -> tirx.Stmt:
    """One parallel loop over a nest. `Schedule` fuses loops itself, but then cannot simplify the conditions inside any more."""
    if FUSE not in loop.annotations:
        return mutator.default_mutate(loop)
    nest = []
    while isinstance(loop, tirx.For) and FUSE in loop.annotations:
        nest.append(loop)
        loop = loop.body

    def body(task):
        values = {}
        for level in reversed(nest):
            values[level.loop_var] = task % level.extent if level is not nest[0] else task
            task = task // level.extent
        return substitute(loop, values)

    return for_loop(prod([level.extent for level in nest], start=tirx.IntImm("int64", 1)), body, tirx.ForKind.PARALLEL)
