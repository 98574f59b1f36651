"""Weighted sums of rows; a chunk of output rows is one thread's, and a panel of channels stays in registers or close by."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_TERM
from ..script import inline
from ..spec.interpolate import Interpolate
from .isa import Isa

CHUNK = 64  # output rows of one task
PANEL = 64  # channels


@cache
def interpolate(spec: Interpolate, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Interpolate`. Each task notes whether its indices are rows, and reads only those that are."""
    channels, terms, dtype = spec.channels, spec.terms, spec.dtype
    panels, rest = divmod(channels, PANEL)

    @inline
    def add_rows(x, index, weight, out, row, n, column, width):
        """out[row, column : column + width]; `width` is a Python int"""
        value = T.alloc_buffer((width,), "float32")
        for c in range(width):
            value[c] = T.float32(0)
        for term in range(terms):
            source: T.let = T.Cast("int64", index[row, term])
            factor: T.let = weight[row, term]
            if T.And(source >= 0, source < n):
                for c in range(width):
                    value[c] = value[c] + factor * T.Cast("float32", x[source, column + c])
        for c in range(width):
            out[row, column + c] = T.Cast(dtype, value[c])

    @inline
    def note_wrong(index, row, n, wrong):
        for term in range(terms):
            wrong[0] = wrong[0] | T.Cast("int32", T.Or(index[row, term] < -1, T.Cast("int64", index[row, term]) >= n))

    @inline
    def report(index, row, n):
        for term in range(terms):
            if T.Or(index[row, term] < -1, T.Cast("int64", index[row, term]) >= n):
                T.evaluate(T.call_packed(RAISE_TERM, row, term, index[row, term], n))

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, index_: T.handle, weight_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"interpolate_{dtype}"})
        n, m = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        index = match_buffer(index_, (m, terms), "int32")
        weight = match_buffer(weight_, (m, terms), "float32")
        out = match_buffer(out_, (m, channels), dtype)
        faults = T.alloc_buffer(((m + CHUNK - 1) // CHUNK,), "int32")
        for chunk in T.parallel((m + CHUNK - 1) // CHUNK):
            wrong = T.alloc_buffer((1,), "int32")
            wrong[0] = T.int32(0)
            for i in range(T.min(T.int64(CHUNK), m - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                note_wrong(index, row, n, wrong)
                for panel in range(panels):
                    add_rows(x, index, weight, out, row, n, panel * PANEL, PANEL)
                if rest > 0:
                    add_rows(x, index, weight, out, row, n, panels * PANEL, rest)
            faults[chunk] = wrong[0]
        for chunk in range((m + CHUNK - 1) // CHUNK):
            if faults[chunk] != 0:
                for i in range(T.min(T.int64(CHUNK), m - chunk * CHUNK)):
                    report(index, chunk * CHUNK + i, n)

    return kernel
