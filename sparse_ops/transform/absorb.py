"""How an op of ours takes in what is applied to its result element by element: sums, products and activations behind it."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import relax

from ..op.register import optional_positions
from .activation import activation_of
from .rewrite import Walk, op_is, same, same_shape, shape_of
from .rows import is_feature

Arguments = dict[str, relax.Expr]
# (walk, shape of the result, the op's call, the other operand) -> further arguments of the op, or None if it has none for it
Take = Callable[[Walk, list, relax.Call, relax.Expr], Arguments | None]


@dataclass(frozen=True)
class Absorber:
    """What one op of ours can take in. Its last step is its activation.

    `op`: its name, as in `R.`; `make`: its constructor; `optional`: the names of its arguments from position `first` on, which
    an attribute of their name tells to be there; `options`: reads the options but the activation from a call; `add`,
    `multiply`: what it does with another operand.
    """

    op: str
    make: Callable[..., relax.Call]
    optional: tuple[str, ...]
    first: int
    options: Callable[[relax.Call], dict]
    add: Take = lambda *_: None
    multiply: Take = lambda *_: None

    def given(self, call: relax.Call) -> Arguments:
        """The optional arguments that a call has."""
        places = optional_positions(call, self.optional, self.first)
        return {name: call.args[place] for name, place in places.items()}

    def absorb(self, walk: Walk, call: relax.Call) -> relax.Expr | None:
        """`call` as part of the op behind one of its arguments; None unless it is element-wise, the op has a place for it,
        and nothing else reads what the op returned."""
        if not is_feature(call):
            return None
        if (activation := activation_of(call)) is not None:
            inner = self._behind(walk, call, call.args[0])
            return None if inner is None else self._extended(walk, call, inner, {"activation": activation})
        if not op_is(call, "add", "multiply"):
            return None
        take = self.add if op_is(call, "add") else self.multiply
        for side, other in (call.args, call.args[::-1]):
            inner = self._behind(walk, call, side) if is_feature(other) else None
            more = None if inner is None else take(walk, shape_of(call), inner, other)
            if more is not None:
                return self._extended(walk, call, inner, more)
        return None

    def _extended(self, walk: Walk, call: relax.Call, inner: relax.Call, more: dict) -> relax.Expr:
        given = self.given(inner) | self.options(inner) | more
        return walk.reshape(walk.emit(self.make(*inner.args[: self.first], **given)), shape_of(call))

    def _behind(self, walk: Walk, call: relax.Call, expr: relax.Expr) -> relax.Call | None:
        """The op's call that made an argument as large as `call`, through reshapes that keep the last axis."""
        shape = shape_of(call)
        if not same_shape(shape_of(expr), shape):
            return None
        while walk.is_read_once(expr) and shape and same(shape_of(expr)[-1], shape[-1]):
            if (found := walk.call_of(expr, self.op)) is not None:
                return found if str(found.attrs["activation"]) == "none" else None
            if (reshape := walk.call_of(expr, "reshape")) is None:
                return None
            expr = reshape.args[0]
        return None
