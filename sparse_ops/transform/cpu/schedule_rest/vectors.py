"""Step 3, innermost loops whose steps know nothing of each other: vectors, and what is left."""

from collections.abc import Callable
from functools import partial

import tvm_ffi
from tvm import ir, tirx
from tvm.sym import Analyzer, detect_linear_equation

from tir_kernels.cpu.isa import PORTABLE, Isa

from .nodes import COMPARISONS, collect, for_loop, is_number, plain, sequence, substitute

NARROWEST = PORTABLE.lanes  # every CPU has registers of so many lanes


def in_strips(start, count, lanes: int, body: Callable) -> list[tirx.Stmt]:
    """body(i) for `count` i from `start` on, in vectors of `lanes`; what is left in narrower ones, the last few one by one.

    A rest of unknown size is left to single steps, or each kernel would have one more loop for every width.
    """
    simplify = Analyzer().simplify
    count, strips = simplify(count), []
    while lanes >= NARROWEST and (not strips or isinstance(count, tirx.IntImm)):
        whole = simplify(count // lanes)
        if not is_number(whole, 0):
            strips.append(for_loop(whole, partial(_vector, start, lanes, body)))
            start, count = start + whole * lanes, simplify(count % lanes)
        lanes //= 2
    if not is_number(count, 0):
        strips.append(for_loop(count, lambda i: body(start + i)))
    return strips or [tirx.Evaluate(0)]


def _vector(start, lanes: int, body: Callable, step) -> tirx.Stmt:
    return for_loop(lanes, lambda lane: body(start + step * lanes + lane), tirx.ForKind.VECTORIZED)


def _conjuncts(condition: tirx.Expr) -> list[tirx.Expr]:
    return [*_conjuncts(condition.a), *_conjuncts(condition.b)] if isinstance(condition, tirx.And) else [condition]


def without_condition(loop: tirx.For) -> tuple[tirx.Stmt, tirx.Expr, list] | None:
    """A loop's body without the condition that a split left, the extent it leaves, and the rest of the condition."""
    body, extent, guards = loop.body, loop.extent, []
    if isinstance(body, tirx.IfThenElse):
        for condition in _conjuncts(body.condition):
            if loop.loop_var not in collect(condition, ir.Var):
                guards.append(condition)
            elif (border := _border(condition, loop.loop_var)) and border[1]:
                extent = tirx.max(tirx.min(extent, border[0]), 0)
            else:
                return None
        if body.else_case is not None:
            return None
        body = body.then_case
    return body, extent, guards


def _border(condition: tirx.Expr, var: tirx.Var) -> tuple[tirx.Expr, bool] | None:
    """(b, holds): a comparison that is `holds` where var < b, and the opposite from there on."""
    if not isinstance(condition, COMPARISONS):
        return None
    low, high = (condition.a, condition.b) if isinstance(condition, tirx.LT | tirx.LE) else (condition.b, condition.a)
    linear = detect_linear_equation(high - low, [var])  # the condition says that this is positive, or not negative
    if not linear or not (is_number(linear[0], 1) or is_number(linear[0], -1)):
        return None
    strict = isinstance(condition, tirx.LT | tirx.GT)
    if is_number(linear[0], -1):  # var < rest, or var <= rest
        return (linear[1] if strict else linear[1] + 1), True
    return (1 - linear[1] if strict else -linear[1]), False


def guarded(body: tirx.Stmt, guards: list[tirx.Expr]) -> tirx.Stmt:
    for guard in guards:
        body = tirx.IfThenElse(guard, body, None)
    return body


def vector_loop(loop: tirx.For) -> tirx.Stmt:
    """In vectors; between the borders of a concatenation or a padding, each side for itself."""
    if (found := without_condition(loop)) is None:
        return plain(loop)
    body, extent, guards = found
    borders = []
    for condition in collect(body, COMPARISONS):
        known = any(tvm_ffi.structural_equal(condition, other) for other, _, _ in borders)
        if not known and (border := _border(condition, loop.loop_var)):
            borders.append((condition, *border))
    if all(isinstance(border, tirx.IntImm) for _, border, _ in borders):
        borders.sort(key=lambda entry: entry[1].value)
    elif len(borders) > 1:
        borders = []
    strips, start = [], tirx.IntImm("int64", 0)
    for place in range(len(borders) + 1):
        end = tirx.max(tirx.min(borders[place][1], extent), start) if place < len(borders) else extent
        truth = [(condition, holds == (place <= k)) for k, (condition, _, holds) in enumerate(borders)]
        part = _decided(body, truth)
        strips += in_strips(start, end - start, Isa.of().lanes, lambda i, part=part: substitute(part, {loop.loop_var: i}))
        start = end
    return guarded(sequence(strips), guards)


def _decided(body: tirx.Stmt, truth: list) -> tirx.Stmt:
    """`body` with comparisons replaced by their known values."""

    def decide(condition):
        return next(
            (tirx.const(value, "bool") for known, value in truth if tvm_ffi.structural_equal(condition, known)), condition
        )

    return tvm_ffi.structural_map(body, (COMPARISONS, decide)) if truth else body
