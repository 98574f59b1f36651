"""Activations on their own, `R.sparse_ops.activation`."""

from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS, Activation

from .register import call_spec, check_choice, register_op
from .signature import Bound, Signature, features

SIGNATURE = Signature("activation", (features("x", ...),), options=("name",), result=(...,))


NAMES = tuple(name for name in ACTIVATIONS if name != "none")


def activation(x: relax.Expr, name: str) -> relax.Call:
    """The activation `name`, one of `NAMES`, of every element of x, float32, bfloat16 or float16 of any rank.

    Returns the type of x; computed in float32. Raises ValueError for another name, dtype, or an unknown rank.
    """
    check_choice("activation", "name", name, NAMES)
    return _make(x=x, name=name)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = Activation(bound.type.ndim, bound.options["name"], bound.dtype)
    return call_spec(bb, spec, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
