"""Where the rows of several coordinate sets are in their union. A set is one task's, as are its row of the result."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_SET_DUPLICATE
from ..script import inline
from ..spec.union import SetRows
from .guards import check_offsets
from .isa import Isa


@inline
def report_duplicate(inverse, rows, first, count, place, union):
    """Raise for the first row of set `place` that repeats an earlier one: number them again, one by one."""
    for target in range(union):
        rows[place, target] = T.int32(-1)
    for i in range(count):
        target: T.let = T.Cast("int64", inverse[first + i])
        if rows[place, target] >= 0:
            T.evaluate(T.call_packed(RAISE_SET_DUPLICATE, i, rows[place, target], place))
        rows[place, target] = T.Cast("int32", i)


@cache
def set_rows(spec: SetRows, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `SetRows`."""

    @script.prim_func(s_tir=True)
    def kernel(unchecked_: T.handle, offsets_: T.handle, inverse_: T.handle, rows_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "set_rows"})
        total, ends, sets, union = T.int64(), T.int64(), T.int64(), T.int64()
        unchecked = match_buffer(unchecked_, (total,), "int32")
        offsets = match_buffer(offsets_, (ends,), "int32")
        inverse = match_buffer(inverse_, (total,), "int32")
        rows = match_buffer(rows_, (sets, union), "int32")
        check_offsets("offsets", offsets, sets, total)
        clashes = T.alloc_buffer((sets,), "int32")
        for place in T.parallel(sets):
            clash = T.alloc_buffer((1,), "int32")
            first: T.let = T.Cast("int64", offsets[place])
            clash[0] = T.int32(0)
            for target in range(union):
                rows[place, target] = T.int32(-1)
            for i in range(T.Cast("int64", offsets[place + 1]) - first):
                target: T.let = T.Cast("int64", unchecked[first + i])
                inverse[first + i] = unchecked[first + i]
                clash[0] = clash[0] | T.Cast("int32", rows[place, target] >= 0)
                rows[place, target] = T.Cast("int32", i)
            clashes[place] = clash[0]
        for place in range(sets):
            if clashes[place] != 0:
                first: T.let = T.Cast("int64", offsets[place])
                report_duplicate(unchecked, rows, first, T.Cast("int64", offsets[place + 1]) - first, place, union)

    return kernel
