"""Integer arithmetic on TIR expressions, for any target."""

from collections.abc import Sequence

from tvm.script import tirx as T

MOST = 2**31 - 1  # of an int32


def divide(value, factor: int):
    """floor(value / factor) of an int32 expression; factors that are powers of two become shifts."""
    if factor & (factor - 1) == 0:
        return value >> (factor.bit_length() - 1)
    return T.floordiv(value, T.int32(factor))


def is_kept(entry, dtype: str):
    """Whether an entry of a mask keeps its row."""
    return entry if dtype == "bool" else entry != T.Cast(dtype, 0)


def nearest_int32(value):
    """The int32 that is nearest to an int64 expression."""
    return T.Cast("int32", T.max(T.min(value, T.int64(MOST)), T.int64(-MOST - 1)))


def last_of(extent, most: int):
    """The largest coordinate within an int64 extent, an int32 expression: no more than `most`."""
    return T.Cast("int32", T.min(extent - 1, T.int64(most)))


def last_of_all(extents: Sequence) -> list:
    """The largest coordinates within int64 extents."""
    return [last_of(extent, MOST) for extent in extents]
