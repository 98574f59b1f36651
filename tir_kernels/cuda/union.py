"""Where the rows of several coordinate sets are in their union: a thread a row, and of rows that clash the first stays."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_SET_DUPLICATE
from ..script import inline
from ..spec.union import SetRows
from .atomics import atomic_least_row
from .gpu import Gpu, kernel_name
from .guards import check_offsets, match_status, refuse_first, reporting
from .launch import for_each
from .sort import search


@cache
def set_rows(spec: SetRows, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `SetRows`."""

    def place_of(set_of, unchecked, row):
        return T.Cast("int64", set_of[row]), T.Cast("int64", unchecked[row])

    @inline
    def clear(rows, union, place):
        rows[place // union, place % union] = T.int32(-1)

    @inline
    def note(unchecked, offsets, inverse, rows, set_of, sets, row):
        found = T.alloc_local((2,), "int64")
        search(found, sets, lambda place: T.Cast("int64", offsets[place + 1]) <= row)
        # Offsets that were refused may lead to no set.
        set_of[row] = T.Cast("int32", T.min(found[0], sets - 1))
        inverse[row] = unchecked[row]
        if found[0] < sets:
            own: T.let = T.Cast("int32", row) - offsets[found[0]]
            T.evaluate(atomic_least_row(rows, [found[0], T.Cast("int64", unchecked[row])], own))

    @script.prim_func(s_tir=True)
    def kernel(unchecked_: T.handle, offsets_: T.handle, status_: T.handle, inverse_: T.handle, rows_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("set_rows")})
        total, ends, sets, union = T.int64(), T.int64(), T.int64(), T.int64()
        unchecked = match_buffer(unchecked_, (total,), "int32")
        offsets = match_buffer(offsets_, (ends,), "int32")
        status = T.meta_var(match_status(status_))
        inverse = match_buffer(inverse_, (total,), "int32")
        rows = match_buffer(rows_, (sets, union), "int32")
        set_of = T.alloc_buffer((total,), "int32")
        check_offsets(status, "offsets", offsets, sets, total)
        for_each(sets * union, lambda place: clear(rows, union, place))
        for_each(total, lambda row: note(unchecked, offsets, inverse, rows, set_of, sets, row))
        refuse_first(
            status,
            total,
            lambda row: rows[place_of(set_of, unchecked, row)] != T.Cast("int32", row) - offsets[set_of[row]],
            RAISE_SET_DUPLICATE,
            lambda row: (row - offsets[set_of[row]], rows[place_of(set_of, unchecked, row)], set_of[row]),
        )

    return reporting(kernel)
