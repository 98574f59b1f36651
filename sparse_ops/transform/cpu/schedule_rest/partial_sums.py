"""Step 3, innermost loops that reduce: vectors of interleaved partial results, joined in a fixed order."""

from dataclasses import dataclass

from tvm import ir, tirx

from tir_kernels.cpu.rows import WIDTH

from .nodes import collect, for_loop, plain, sequence, substitute
from .vectors import guarded, in_strips, without_condition


@dataclass
class _Partial:
    """One accumulator of a reduction, acc = join(acc, value), and the interleaved partial results that replace it."""

    acc: ir.TensorLoad
    join: type
    value: tirx.Expr
    partial: tirx.Buffer

    def at(self, lane) -> tirx.Expr:
        return tirx.BufferLoad(self.partial, [lane])

    def start(self, lane) -> tirx.Stmt:
        neutral = tirx.const(0, self.acc.ty.dtype) if self.join is tirx.Add else self.acc  # joined twice, max and min stay
        return tirx.BufferStore(self.partial, neutral, [lane])

    def add(self, lane, value: tirx.Expr) -> tirx.Stmt:
        return tirx.BufferStore(self.partial, self.join(self.at(lane), value), [lane])

    def finish(self) -> tirx.Stmt:
        low, high = (self.at(tirx.IntImm("int64", lane)) for lane in (0, 1))
        return tirx.BufferStore(self.acc.source, self.join(self.acc, self.join(low, high)), self.acc.indices)


def partial_loop(loop: tirx.For) -> tirx.Stmt:
    """A reduction in vectors of partial results, which are then joined pairwise."""
    bounded = without_condition(loop)
    size = loop.extent.value if isinstance(loop.extent, tirx.IntImm) else WIDTH
    width = WIDTH if size >= WIDTH else 8
    partials = _partials(bounded[0], width) if bounded and size >= 8 else None
    if partials is None:
        return plain(loop)
    _, count, guards = bounded

    def add(i):  # i is a multiple of the width, plus a lane
        return sequence([part.add(i % width, substitute(part.value, {loop.loop_var: i})) for part in partials])

    def fold(half):
        step = lambda lane: sequence([part.add(lane, part.at(lane + half)) for part in partials])  # noqa: E731
        return for_loop(half, step, tirx.ForKind.VECTORIZED)

    steps = [
        *(tirx.AllocBuffer(part.partial) for part in partials),
        for_loop(width, lambda lane: sequence([part.start(lane) for part in partials]), tirx.ForKind.VECTORIZED),
        *in_strips(tirx.IntImm("int64", 0), count, width, add),
        *(fold(half) for half in (16, 8, 4, 2) if half < width),
        *(part.finish() for part in partials),
    ]
    return guarded(sequence(steps), guards)


def _partials(body: tirx.Stmt, width: int) -> list[_Partial] | None:
    """The accumulators of a loop's body; None for anything but sums, maxima and minima that know nothing of each other."""
    bound, found = {}, []
    for statement in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        if isinstance(statement, tirx.Bind):
            bound[statement.var] = statement.value
            continue
        value = substitute(statement.value, bound) if isinstance(statement, tirx.BufferStore) else None
        if not isinstance(value, tirx.Add | tirx.Max | tirx.Min) or not isinstance(value.a, ir.TensorLoad):
            return None
        if not value.a.source.same_as(statement.buffer):
            return None
        partial = tirx.decl_buffer((width,), value.a.ty.dtype, "partial")
        found.append(_Partial(value.a, type(value), value.b, partial))
    written = {part.acc.source for part in found}
    independent = not any(load.source in written for part in found for load in collect(part.value, ir.TensorLoad))
    return found if independent else None
