"""Activations on their own, `R.sparse_ops.activation`."""

from tvm import relax

from tir_kernels.cpu.elementwise import elementwise
from tir_kernels.cpu.vector_math import ACTIVATIONS

from .register import call_kernel, check_choice, register_op
from .signature import Bound, Signature, features

SIGNATURE = Signature("activation", (features("x", ...),), options=("name",), result=(...,))


NAMES = tuple(name for name in ACTIVATIONS if name != "none")


def activation(x: relax.Expr, name: str) -> relax.Call:
    """The activation `name` ("relu", "silu", "gelu" or "gelu_tanh") of every element of x, float32 or bfloat16 of any rank.

    Returns the type of x; computed in float32. Raises ValueError for another name, dtype, or an unknown rank.
    """
    check_choice("activation", "name", name, NAMES)
    return _make(x=x, name=name)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    kernel = elementwise(bound.type.ndim, bound.options["name"], bound.dtype)
    return call_kernel(bb, kernel, bound.call.args, bound.type)


_make = register_op(SIGNATURE, _legalize)
