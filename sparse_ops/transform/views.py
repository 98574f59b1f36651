"""Reshapes of tensors with several sizes that only the running module knows -> views of the same memory."""

import tvm
from tvm import relax

from .rewrite import Walk, op_is, rewrite_pass, same_shape, shape_of, static


def ViewReshapes() -> tvm.transform.Pass:
    """`R.reshape` between shapes with two sizes or more that are not known -> a view.

    `RewriteDataflowReshape` makes views too, but not of these, whose kernels it does not see through: they would copy, dividing
    for each element, and take half a minute to compile. What a function returns stays a tensor of its own.
    """
    return rewrite_pass("ViewReshapes", _view)


def _view(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if not op_is(call, "reshape") or shape_of(call) is None or shape_of(call.args[0]) is None:
        return None
    if min(sum(static(dim) is None for dim in shape_of(expr)) for expr in (call, call.args[0])) < 2:
        return None
    if _is_returned(walk, call):
        return None
    return relax.op.call_pure_packed("vm.builtin.reshape", call.args[0], relax.ShapeExpr(shape_of(call)), ty_args=call.ty)


def _is_returned(walk: Walk, call: relax.Call) -> bool:
    """Whether a parameter may be returned in this shape, so that a view of it would be the caller's own memory."""
    if not isinstance(walk.value(call.args[0]), relax.Var):
        return False
    of_this_shape = (
        var
        for var, value in walk.bound.items()
        if isinstance(value, relax.Call) and op_is(value, "reshape") and same_shape(shape_of(value), shape_of(call))
    )
    return any(_goes_out(walk, var) for var in of_this_shape)


def _goes_out(walk: Walk, var: relax.Var) -> bool:
    readers = walk.readers.get(var, ())
    return any(
        reader is None or (isinstance(walk.bound[reader], relax.Tuple) and _goes_out(walk, reader)) for reader in readers
    )
