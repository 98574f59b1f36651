"""Whether some tensors fit into memory."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..granting import asked, check_memory, match_sized
from ..spec.memory import MOST_NUMBERS, MOST_SIZED, GrantMemory
from .isa import Isa


@cache
def grant_memory(spec: GrantMemory, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `GrantMemory`."""

    @script.prim_func(s_tir=True)
    def kernel(
        x0_: T.handle, x1_: T.handle, n0: T.int64, n1: T.int64, n2: T.int64, n3: T.int64, n4: T.int64, granted_: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "grant_memory"})
        shapes = T.meta_var(match_sized(spec, x0_, x1_))
        granted = match_buffer(granted_, (1,), "int64")
        check_memory(spec.what, asked(spec, shapes, (n0, n1, n2, n3, n4)))
        granted[0] = T.int64(1)

    unused = [f"x{place}_" for place in range(len(spec.sized), MOST_SIZED)]
    return script.drop_parameters(kernel, *unused, *(f"n{place}" for place in range(spec.numbers, MOST_NUMBERS)))
