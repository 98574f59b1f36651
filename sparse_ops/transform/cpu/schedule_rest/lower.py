"""Step 2: the blocks go, and bfloat16 and float16 between the loads and the stores with them."""

import tvm
from tvm import s_tir, tirx

from .float16 import computed_in_float32

_LOWERING = tvm.transform.Sequential(
    [
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.BF16ComputeLegalize(),  # also makes float32 of bfloat16 buffers that stay inside
    ]
)


def lower(func: tirx.PrimFunc) -> tirx.PrimFunc:
    return computed_in_float32(_LOWERING(tvm.IRModule({"main": func}))["main"])
