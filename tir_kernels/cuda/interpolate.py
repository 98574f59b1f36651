"""Weighted sums of rows: a thread has a vector of channels, or one of them, and adds its terms in order."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_TERM
from ..script import inline
from ..spec.interpolate import Interpolate
from .gpu import Gpu, kernel_name
from .guards import match_status, refuse_first, reporting
from .launch import for_each, left_to_nvcc
from .vectors import load_vector, store_vector, width


@cache
def interpolate(spec: Interpolate, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `Interpolate`. Only indices that are rows are read."""
    channels, terms, dtype = spec.channels, spec.terms, spec.dtype
    lanes = width(dtype, channels)
    pieces = channels // lanes  # of a row

    def is_wrong(index, place, n):
        entry = index[place // terms, place % terms]
        return T.Or(entry < -1, T.Cast("int64", entry) >= n)

    @inline
    def sum_terms(x, index, weight, out, n, row, first):
        left_to_nvcc()
        given = T.alloc_local((lanes,), dtype)
        value = T.alloc_local((lanes,), "float32")
        for lane in T.unroll(lanes):
            value[lane] = T.float32(0)
        for term in range(terms):
            source: T.let = T.Cast("int64", index[row, term])
            if T.And(source >= 0, source < n):
                load_vector(given, 0, x, source, first, lanes)
                for lane in T.unroll(lanes):
                    value[lane] = value[lane] + weight[row, term] * T.Cast("float32", given[lane])
        store_vector(out, row, first, value, lanes)

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, index_: T.handle, weight_: T.handle, status_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("interpolate", dtype)})
        n, m = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        index = match_buffer(index_, (m, terms), "int32")
        weight = match_buffer(weight_, (m, terms), "float32")
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (m, channels), dtype)
        refuse_first(
            status,
            m * terms,
            lambda place: is_wrong(index, place, n),
            RAISE_TERM,
            lambda place: (place // terms, place % terms, index[place // terms, place % terms], n),
        )
        for_each(m * pieces, lambda place: sum_terms(x, index, weight, out, n, place // pieces, place % pieces * lanes))

    return reporting(kernel)
