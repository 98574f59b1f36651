"""Whether some tensors fit into memory."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.memory import MOST_DIMENSIONS, GrantMemory
from .guards import check_memory
from .isa import Isa


@cache
def grant_memory(spec: GrantMemory, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `GrantMemory`."""
    rank = sum(rank for _, rank in spec.tensors)

    @script.prim_func(s_tir=True)
    def kernel(
        n0: T.int64, n1: T.int64, n2: T.int64, n3: T.int64, n4: T.int64, n5: T.int64, n6: T.int64, n7: T.int64, out_: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "grant_memory"})
        dims = T.meta_var([n0, n1, n2, n3, n4, n5, n6, n7])
        granted = match_buffer(out_, (1,), "int64")
        check_memory(spec.what, split(spec.tensors, dims))
        granted[0] = T.int64(1)

    return script.drop_parameters(kernel, *(f"n{place}" for place in range(rank, MOST_DIMENSIONS)))


def split(tensors, dims) -> list[tuple]:
    """(dtype, its dimensions) of each tensor, from the dimensions of all."""
    dims = list(dims)
    return [(dtype, [dims.pop(0) for _ in range(rank)]) for dtype, rank in tensors]
