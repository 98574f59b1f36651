"""Row selection.

A chunk of output rows is one thread's. The index is checked first, whole, so that no thread reads out of bounds.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.gather_rows import GatherRows
from .guards import check_index
from .isa import Isa

CHUNK = 64  # rows that one task copies


@cache
def gather_rows(spec: GatherRows, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `GatherRows`."""
    channels, dtype = spec.channels, spec.dtype

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, index_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": f"gather_rows_{dtype}"})
        n, m = T.int64(), T.int64()
        x = match_buffer(x_, (n, channels), dtype)
        index = match_buffer(index_, (m,), "int32")
        out = match_buffer(out_, (m, channels), dtype)
        check_index(index, m, n)
        for chunk in T.parallel((m + CHUNK - 1) // CHUNK):
            for i in range(T.min(T.int64(CHUNK), m - chunk * CHUNK)):
                row: T.let = chunk * CHUNK + i
                source: T.let = T.Cast("int64", index[row])
                if source >= 0:
                    for c in range(channels):
                        out[row, c] = x[source, c]
                else:
                    for c in range(channels):
                        out[row, c] = T.Cast(dtype, 0)

    return kernel
