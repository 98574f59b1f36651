"""A schedule for every kernel that is not hand-written: what Relax's own legalization and fusion leave behind.

Three steps, each on one PrimFunc:

1. `schedule` gives its blocks a structure by `s_tir.Schedule`, which checks that every step is legal: producers are inlined,
   blocks that work row by row share one loop over the rows, the outer loops are fused and run in parallel, the innermost
   one is contiguous in memory. `products` puts matrix products into register tiles. `reductions` cuts large reductions to
   few results into parts of fixed size, so that their bits do not depend on the number of threads.
2. `lower` takes the blocks away, and bfloat16 and float16 between the loads and the stores with them.
3. `finish` rewrites the innermost loops: `vectors` of fixed width with a remainder; sums in interleaved `partial_sums`; `exp`,
   `tanh`, `sigmoid` and `erf` of float32 as `polynomials`, which vectorize, where the C library's functions do not.
"""

import contextlib
import logging

import tvm
from tvm import s_tir, tirx

from tir_kernels.cpu.float16 import spelled_out
from tir_kernels.cpu.isa import Isa

from ....op.register import SCHEDULED
from .block import NotUnderstood
from .finish import finish
from .lower import lower
from .schedule import schedule_blocks, unaligned

__all__ = ["ScheduleRest"]

logger = logging.getLogger(__name__)

# What may keep a kernel from being scheduled: our word for it, a step that `Schedule` refuses, a failed check inside of TVM.
REFUSALS = (NotUnderstood, s_tir.ScheduleError, tvm.error.InternalError)
OPTIONS = ({}, {"tile": False}, {"tile": False, "share_rows": False})  # of `schedule_blocks`, best first


@tvm.transform.module_pass(opt_level=0, name="ScheduleRest")
class ScheduleRest:
    """Module pass: schedule every PrimFunc that is not yet scheduled, for the CPU target in scope.

    It belongs behind LegalizeOps, FuseOps and FuseTIR, and behind RewriteDataflowReshape, which knows reshapes by their
    unscheduled form and makes them free. Shapes may be symbolic. What it does not understand stays as it is, and this
    module's logger says so: slow is better than not at all.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for gv, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and not (func.attrs and SCHEDULED in func.attrs):
                func = _scheduled(gv.name_hint, func)
                mod.update_func(gv, func if Isa.of().converts_half else spelled_out(func))
        return mod


def _scheduled(name: str, func: tirx.PrimFunc) -> tirx.PrimFunc:
    reason = None
    for options in OPTIONS:
        try:
            result = finish(lower(schedule_blocks(unaligned(func), **options)))
        except REFUSALS as error:
            reason = f"{type(error).__name__}: {_first_line(error)}"
            logger.debug("%s: with %s: %s", name, options or "all options", reason)
            continue
        if options:
            logger.info("%s: scheduled without %s: %s", name, " and ".join(options), reason)
        return result
    logger.info("%s: left unscheduled: %s", name, reason)
    with contextlib.suppress(NotUnderstood):  # arguments may lie anywhere all the same
        return unaligned(func)
    return func


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "no reason given").strip()
