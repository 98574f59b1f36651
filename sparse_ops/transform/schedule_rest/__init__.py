"""A schedule for every kernel that is not hand-written: what Relax's own legalization and fusion leave behind.

Three steps, each on one PrimFunc:

1. `schedule` gives its blocks a structure by `s_tir.Schedule`, which checks that every step is legal: producers are inlined,
   blocks that work row by row share one loop over the rows, the outer loops are fused and run in parallel, the innermost
   one is contiguous in memory. `products` puts matrix products into register tiles. `reductions` cuts large reductions to
   few results into parts of fixed size, so that their bits do not depend on the number of threads.
2. `lower` takes the blocks away, and bfloat16 between the loads and the stores with them.
3. `finish` rewrites the innermost loops: `vectors` of fixed width with a remainder; sums in interleaved `partial_sums`; `exp`,
   `tanh`, `sigmoid` and `erf` of float32 as `polynomials`, which vectorize, where the C library's functions do not.
"""

import tvm
from tvm import tirx

from ...op.register import SCHEDULED
from .finish import finish
from .lower import lower
from .schedule import schedule_blocks, unaligned

__all__ = ["ScheduleRest"]


@tvm.transform.module_pass(opt_level=0, name="ScheduleRest")
class ScheduleRest:
    """Module pass: schedule every PrimFunc that is not yet scheduled, for the CPU target in scope.

    It belongs behind LegalizeOps, FuseOps and FuseTIR, and behind RewriteDataflowReshape, which knows reshapes by their
    unscheduled form and makes them free. Shapes may be symbolic. What it does not understand stays as it is.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for gv, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and not (func.attrs and SCHEDULED in func.attrs):
                mod.update_func(gv, _scheduled(func))
        return mod


def _scheduled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    for options in ({}, {"tile": False}, {"tile": False, "share_rows": False}):
        try:
            schedule = schedule_blocks(unaligned(func), **options)
            return func if schedule is None else finish(lower(schedule.mod["main"]))
        except Exception:  # a step that `Schedule` refuses, or a check inside of TVM: slow is better than not at all
            continue
    return func
