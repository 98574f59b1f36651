"""Shared by the ops: dimensions that must be known, tensors of any rank, arguments of which only the rows count, numbers."""

import tvm
from tvm import relax

from .register import FLOATS, op_name, tensor_type


def known(call: relax.Call, argument: str, dims) -> tuple[int, ...]:
    """Dimensions that a kernel is built for; ValueError when one is not known before run time."""
    for dim in dims:
        if not isinstance(dim, int | tvm.tirx.IntImm):
            raise ValueError(
                f"{op_name(call)}: {argument}: expected sizes known at compile time in all dimensions but the rows, given {dim}"
            )
    return tuple(int(dim) for dim in dims)


def float_shape(call: relax.Call, position: int, argument: str, least: int = 0) -> list:
    """The shape of a float tensor of any rank from `least` on; ValueError when it is none or its shape is not known."""
    ty = tensor_type(call, position, argument)
    if str(ty.dtype) not in FLOATS or not isinstance(ty.shape, relax.ShapeExpr) or len(ty.shape.values) < least:
        rank = f" of at least {least} dimensions" if least else ""
        expected = f"a tensor of {' or '.join(FLOATS)} with a known shape{rank}"
        raise ValueError(f"{op_name(call)}: {argument}: expected {expected}, given {ty}")
    return list(ty.shape.values)


def rows_of(call: relax.Call, position: int, argument: str):
    """The rows of a tensor that is given for their number only."""
    ty = tensor_type(call, position, argument)
    if not isinstance(ty.shape, relax.ShapeExpr) or not len(ty.shape.values):
        raise ValueError(f"{op_name(call)}: {argument}: expected a tensor with a known number of rows, given {ty}")
    return ty.shape.values[0]


def check_int(op: str, argument: str, value, least: int) -> int:
    """ValueError unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"sparse_ops.{op}: {argument}: expected an int of at least {least}, given {value!r}")
    return value


def check_positive(op: str, argument: str, value) -> float:
    """ValueError unless `value` is a number above 0 and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"sparse_ops.{op}: {argument}: expected a number above 0, given {value!r}")
    return float(value)
