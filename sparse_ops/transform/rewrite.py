"""What the passes here are made of: a walk over all calls of a module, and questions about the values that calls read."""

from collections import defaultdict
from collections.abc import Callable

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

Rule = Callable[["Walk", relax.Call], relax.Expr | None]


def rewrite_pass(name: str, rule: Rule) -> tvm.transform.Pass:
    """A module pass that asks `rule(walk, call)` at every call of an op, in order of evaluation, what replaces it.

    Arguments of the call are rewritten already; None leaves it as it is. What nobody reads afterwards is removed. Functions
    that other passes have fused stay as they are.
    """

    @tvm.transform.module_pass(opt_level=0, name=name)
    def transform(mod: tvm.IRModule, context) -> tvm.IRModule:
        walk = Walk(mod, rule)
        for variable, function in mod.functions_items():
            if isinstance(function, relax.Function) and not (function.attrs and "Primitive" in function.attrs):
                walk.builder_.update_func(variable, walk.rewritten(function))
        return CLEAN(walk.builder_.get())

    return transform


@mutator
class Walk(PyExprMutator):
    """The walk of one module. Variables keep their identity, so that what is known of them before holds while rewriting."""

    def __init__(self, mod: tvm.IRModule, rule: Rule):
        super().__init__(mod)
        self.rule = rule
        self.bound: dict[relax.Var, relax.Expr] = {}  # the values of all variables, before rewriting
        self.readers: dict[relax.Var, list[relax.Var | None]] = {}
        self.parameters: set[relax.Var] = set()  # of the function, without its inputs, if it says how many these are
        self.attrs = {}  # of the function

    def rewritten(self, function: relax.Function) -> relax.Function:
        self.bound = {binding.var: binding.value for block in function.body.blocks for binding in block.bindings}
        self.readers = readers_of(function)
        self.attrs = dict(function.attrs or {})
        has_inputs = function.attrs and "num_input" in function.attrs
        self.parameters = set(function.params[int(function.attrs["num_input"]) :]) if has_inputs else set()
        return self.visit_expr(function)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.builder_.normalize(self.visit_expr_post_order(call))
        result = self.rule(self, call) if isinstance(call.op, tvm.ir.Op) else None
        return call if result is None else self.builder_.normalize(result)

    def emit(self, expr: relax.Expr) -> relax.Var:
        return self.builder_.emit(expr)

    def value(self, expr: relax.Expr) -> relax.Expr:
        """What a variable is bound to, through renamings; parameters, and what is no variable, are themselves."""
        while isinstance(expr, relax.Var):
            bound = self.lookup_binding(expr)
            if bound is None:
                return expr
            expr = bound
        return expr

    def call_of(self, expr: relax.Expr, *ops: str) -> relax.Call | None:
        """The call of one of `ops` ("add" is `R.add`) that made a value, if one did."""
        value = self.value(expr)
        return value if isinstance(value, relax.Call) and op_is(value, *ops) else None

    def is_read_once(self, expr: relax.Expr) -> bool:
        """Whether a value has one reader at most, so that the work behind it can move there."""
        return not isinstance(expr, relax.Var) or len(self.readers.get(expr, ())) <= 1

    def reshape(self, expr: relax.Expr, shape) -> relax.Expr:
        """`expr` with another shape; itself if it has that already."""
        return expr if same_shape(shape_of(expr), shape) else self.emit(relax.op.reshape(expr, relax.ShapeExpr(list(shape))))

    def permute(self, expr: relax.Expr, axes) -> relax.Expr:
        """`expr` with its axes in another order; itself if the order is the same."""
        return expr if list(axes) == list(range(len(axes))) else self.emit(relax.op.permute_dims(expr, list(axes)))

    def astype(self, expr: relax.Expr, dtype: str) -> relax.Expr:
        return expr if str(expr.ty.dtype) == dtype else self.emit(relax.op.astype(expr, dtype))


def readers_of(function: relax.Function) -> dict[relax.Var, list[relax.Var | None]]:
    """For each variable those whose value reads it; None stands for the result of the function."""
    readers: dict[relax.Var, list[relax.Var | None]] = defaultdict(list)
    for block in function.body.blocks:
        for binding in block.bindings:
            for variable in relax.analysis.free_vars(binding.value):
                readers[variable].append(binding.var)
    for variable in relax.analysis.free_vars(function.body.body):
        readers[variable].append(None)
    return readers


def op_is(call: relax.Call, *ops: str) -> bool:
    return isinstance(call.op, tvm.ir.Op) and call.op.name.removeprefix("relax.") in ops


def axes_of(call: relax.Call) -> list[int]:
    """Which axis of its argument each axis of a `permute_dims` is."""
    rank = call.args[0].ty.ndim
    return list(range(rank))[::-1] if call.attrs.axes is None else [int(axis) % rank for axis in call.attrs.axes]


def shape_of(expr: relax.Expr) -> list | None:
    """The dimensions of a tensor; None where they are not known."""
    ty = expr.ty
    known = isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr)
    return list(ty.shape.values) if known else None


def same(a, b) -> bool:
    """Whether two dimensions are equal, as far as can be told before run time."""
    return tvm.sym.Analyzer().can_prove(a == b) if isinstance(a, tvm.ir.Expr) or isinstance(b, tvm.ir.Expr) else a == b


def same_shape(a, b) -> bool:
    return a is not None and b is not None and len(a) == len(b) and all(map(same, a, b))


def static(dim) -> int | None:
    """A dimension as an int; None where it is symbolic."""
    return int(dim) if isinstance(dim, int | tvm.tirx.IntImm) else None


def product(dims):
    """The product of some dimensions, a TIR expression; of none, 1."""
    result = tvm.tirx.IntImm("int64", 1)
    for dim in dims:
        result = result * dim
    return tvm.sym.Analyzer().simplify(result)


def scalar(expr: relax.Expr) -> float | None:
    """The value of a constant with one element."""
    shape = shape_of(expr) if isinstance(expr, tvm.ir.GenericConst) else None
    return None if shape is None or set(map(int, shape)) - {1} else float(expr.value.numpy().reshape(()))


def summands_of(walk: Walk, expr: relax.Expr) -> list[relax.Expr]:
    """The two summands of an addition; of anything else, nothing."""
    call = walk.call_of(expr, "add")
    return [] if call is None else list(call.args)


def one_plus(walk: Walk, expr: relax.Expr) -> relax.Expr | None:
    """What 1 is added to, if `expr` is such a sum."""
    summands = summands_of(walk, expr)
    others = [summand for summand in summands if scalar(summand) != 1]
    return others[0] if len(summands) == 2 and len(others) == 1 else None


CLEAN = tvm.transform.Sequential([relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()])
