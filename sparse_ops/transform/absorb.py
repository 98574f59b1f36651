"""How an op of ours takes in what is applied to its result element by element: sums, products and activations behind it."""

from collections.abc import Callable

from tvm import relax

from ..op.register import OPS, Op
from ..op.signature import Argument, Epilogue, Kind, Table
from .activation import activation_of
from .rewrite import Walk, one_plus, op_is, product, same, same_shape, shape_of
from .rows import is_feature, table_of

Arguments = dict[str, relax.Expr]


class Absorber:
    """What one op of ours can take in, as its signature says: the arguments with an epilogue, in their order, then an
    activation."""

    def __init__(self, name: str):
        self.op: Op = OPS[name]
        self.signature = self.op.signature

    def call_of(self, walk: Walk, expr: relax.Expr) -> relax.Call | None:
        """The call of this op that made a value, if one did."""
        return walk.call_of(expr, self.signature.qualified)

    def given(self, call: relax.Call) -> Arguments:
        """The optional arguments that a call has."""
        optional = self.signature.optional
        return {name: value for name, value in self.signature.arguments_of(call).items() if name in optional}

    def absorb(self, walk: Walk, call: relax.Call) -> relax.Expr | None:
        """`call` as part of the op behind one of its arguments; None unless it is element-wise, the op has a place for it,
        and nothing else reads what the op returned."""
        if not is_feature(call):
            return None
        if (activation := activation_of(call)) is not None:
            inner = self._behind(walk, call, call.args[0])
            return None if inner is None else self._extended(walk, call, inner, {}, activation=activation)
        if not op_is(call, "add", "multiply"):
            return None
        for side, other in (call.args, call.args[::-1]):
            inner = self._behind(walk, call, side) if is_feature(other) else None
            more = None if inner is None else self._taken(walk, call, inner, other)
            if more is not None:
                return self._extended(walk, call, inner, more)
        return None

    def _taken(self, walk: Walk, call: relax.Call, inner: relax.Call, other: relax.Expr) -> Arguments | None:
        """The arguments of `inner` that take in `other`, which `call` adds to its result or multiplies it by."""
        for argument in self.signature.arguments:
            if argument.epilogue is None or not self._is_open(inner, argument):
                continue
            operand = other
            if op_is(call, "add") != (argument.epilogue[1] is Epilogue.ADD):
                continue
            if argument.epilogue[1] is Epilogue.MULTIPLY_BY_ONE_PLUS and (operand := one_plus(walk, other)) is None:
                continue
            if (more := self._as_argument(walk, shape_of(call), inner, argument, operand)) is not None:
                return more
        return None

    def _is_open(self, inner: relax.Call, argument: Argument) -> bool:
        """Whether neither the argument is given, nor any that comes after it."""
        given = (self.signature.by_name[name].epilogue for name in self.given(inner))
        return all(epilogue is None or epilogue[0] < argument.epilogue[0] for epilogue in given)

    def _as_argument(
        self, walk: Walk, shape: list, inner: relax.Call, argument: Argument, other: relax.Expr
    ) -> Arguments | None:
        """`other`, an operand beside a result of `shape`, as an argument; None where it is of another form."""
        if argument.kind is Kind.FEATURES:
            fits = same_shape(shape_of(other), shape) and other.ty.dtype == inner.args[0].ty.dtype
            return {argument.name: walk.reshape(other, shape_of(inner))} if fits else None
        if isinstance(argument.shape[0], Table):
            return self._as_table(walk, shape, inner, argument, other)
        vector = channel_vector(walk, shape, self.signature.result.index(argument.shape[0]), inner, other)
        return None if vector is None else {argument.name: vector}

    def _as_table(self, walk: Walk, shape: list, inner: relax.Call, argument: Argument, other: relax.Expr) -> Arguments | None:
        """As a table, if all tables of the call have as many rows."""
        if (found := table_of(walk, other, shape)) is None:
            return None
        (table, index), name, given = found, argument.shape[0].index, self.given(inner)
        tables = [a for a in self.signature.arguments if a.name in given and a.shape and isinstance(a.shape[0], Table)]
        if tables and (name in given) != (index is not None):
            return None
        return {argument.name: table} | ({} if index is None else {name: index})

    def _extended(self, walk: Walk, call: relax.Call, inner: relax.Call, more: Arguments, **options) -> relax.Expr:
        return walk.reshape(walk.emit(self.op.with_more(inner, more, options)), shape_of(call))

    def _behind(self, walk: Walk, call: relax.Call, expr: relax.Expr) -> relax.Call | None:
        """The op's call that made an argument as large as `call`, through reshapes that keep the last axis."""
        shape = shape_of(call)
        if not same_shape(shape_of(expr), shape):
            return None
        while walk.is_read_once(expr) and shape and same(shape_of(expr)[-1], shape[-1]):
            if (found := self.call_of(walk, expr)) is not None:
                return found if self.signature.options_of(found)["activation"] == "none" else None
            if (reshape := walk.call_of(expr, "reshape")) is None:
                return None
            expr = reshape.args[0]
        return None


def channel_vector(walk: Walk, shape: list, axis: int, inner: relax.Call, other: relax.Expr) -> relax.Expr | None:
    """float32 [C] from an operand that has one value to a channel of a result of `shape`; None for any other.

    `axis`: of the channels in what the op returns. It is the last one, or counts from the front as the batch does.
    """
    channels, dims = shape_of(inner)[axis], shape_of(other)
    place = len(dims) - (1 if axis == len(shape_of(inner)) - 1 else len(shape) - axis)  # shapes are aligned at their end
    if not 0 <= place < len(dims) or not same(dims[place], channels) or not same(product(dims), channels):
        return None
    return walk.astype(walk.reshape(other, [channels]), "float32")


def recognizer(name: str, pattern: Callable[[Walk, relax.Call], relax.Expr | None], *ops: str) -> Callable:
    """A rule: calls of `ops` become what `pattern` says, and op `name` takes in what follows it."""
    absorber = Absorber(name)

    def rule(walk: Walk, call: relax.Call) -> relax.Expr | None:
        return pattern(walk, call) if op_is(call, *ops) else absorber.absorb(walk, call)

    return rule
