"""Activations on their own, `R.sparse_ops.activation`."""

from tvm import relax

from tir_kernels.spec.activation import ACTIVATIONS, Activation

from .register import call_spec, check_choice, register_op
from .shapes import float_shape

NAMES = tuple(name for name in ACTIVATIONS if name != "none")  # those that do something


def activation(x: relax.Expr, name: str) -> relax.Call:
    """The activation `name`, one of `NAMES`, of every element of x, float32 or bfloat16 of any rank.

    Returns the type of x; computed in float32. Raises ValueError for another name, dtype, or an unknown rank.
    """
    check_choice("activation", "name", name, NAMES)
    return _make(x, name=name)


def _infer(call: relax.Call) -> relax.TensorType:
    return relax.TensorType(float_shape(call, 0, "x"), str(call.args[0].ty.dtype))


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    spec = Activation(call.ty.ndim, str(call.attrs["name"]), str(call.ty.dtype))
    return call_spec(bb, spec, call.args, call.ty)


_make = register_op("activation", _infer, _legalize)
