"""Checks of the numbers and flags among the options of ops, layers and eager calls: of any kind, numpy's too."""

import operator
from numbers import Real

import numpy as np

MOST_STEP = 1 << 20  # of a kernel, stride, padding, dilation, factor or window: more than the 65536 places of an axis
MOST_SIZE = (1 << 63) - 1  # of an extent, a shift, a number of rows or of batch elements


def as_int(value) -> int | None:
    """`value` as an int if it is an integer of any kind, such as np.int64, but no bool; None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or getattr(value, "ndim", 0) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_axes(value, count: int) -> tuple[int, ...] | None:
    """An integer, or `count` of them in a tuple, list or array, as a tuple of `count`; None for anything else."""
    one = as_int(value)
    if one is not None:
        return (one,) * count
    try:
        axes = tuple([as_int(axis) for axis in value])
    except TypeError:  # nothing that can be iterated over
        return None
    return axes if len(axes) == count and None not in axes else None


def shown(value) -> str:
    """A wrong value, for messages: on one line and not long."""
    return " ".join(repr(value).split())[:120]


def check_int(op: str, argument: str, value, least: int) -> int:
    """`value` as an int; ValueError unless it is one of at least `least`."""
    number = as_int(value)
    if number is None or number < least:
        raise ValueError(f"sparse_ops.{op}: {argument}: expected an int of at least {least}, given {shown(value)}")
    check_most(f"sparse_ops.{op}: {argument}", value, (number,), MOST_SIZE)
    return number


def check_most(where: str, value, numbers: tuple[int, ...], most: int) -> None:
    """ValueError, whose words `where` begins, if one of the numbers that `value` means is above `most`."""
    if max(numbers, default=0) > most:
        raise ValueError(f"{where}: expected at most {most}, given {shown(value)}")


def check_positive(op: str, argument: str, value) -> float:
    """`value` as a float; ValueError unless it is a number above 0 and finite."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < float("inf"):
        raise ValueError(f"sparse_ops.{op}: {argument}: expected a number above 0, given {shown(value)}")
    return float(value)


def check_flag(op: str, argument: str, value) -> bool:
    """`value` as a bool; ValueError unless it is True or False, numpy's too."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"sparse_ops.{op}: {argument}: expected True or False, given {shown(value)}")
    return bool(value)


def check_groups(argument: str, groups, in_channels: int, out_channels: int) -> int:
    """`groups` as an int; ValueError unless it divides the channels on both sides."""
    number = as_int(groups)
    if number is None or number < 1 or in_channels % number or out_channels % number:
        expected = f"expected a divisor of {in_channels} input and {out_channels} output channels"
        raise ValueError(f"{argument}: {expected}, given {shown(groups)}")
    return number
