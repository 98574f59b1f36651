"""The steps of a reduction of rows, as TIR expressions for any target; see `spec.pool.Reduction`."""

from tvm.script import tirx as T

from .spec.pool import Reduction
from .vector_math import bind


def initial(reduction: Reduction):
    """The float32 value that a reduction begins with, as a TIR expression."""
    return T.float32("-inf") if reduction.mode == "max" and not reduction.max_from_zero else T.float32(0)


def add(reduction: Reduction, value, row):
    """One more row, from TIR expressions. A maximum keeps NaN, whichever of the two it is: `T.max` passes over the first."""
    if reduction.mode != "max":
        return value + row
    value, row = bind(value), bind(row)  # a load inside of a selection becomes a branch
    return T.Select(T.isnan(value), T.float32("nan"), T.Select(value > row, value, row))


def finish(reduction: Reduction, value, count):
    """The result, from the reduced value and the int32 number of rows in it."""
    if reduction.mode == "mean":
        value = value / T.Cast("float32", T.max(count + reduction.count_bias, 1))
    return T.if_then_else(count > 0, value, T.float32(0))
