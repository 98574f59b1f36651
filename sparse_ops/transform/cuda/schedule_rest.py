"""A schedule for every kernel that is not hand-written, by the rules of TVM's dlight."""

import tvm
from tvm import tirx
from tvm.s_tir import dlight

from tir_kernels.cuda.gpu import on_device

from ...op.register import SCHEDULED

RULES = (dlight.gpu.Matmul, dlight.gpu.GEMV, dlight.gpu.Reduction, dlight.gpu.GeneralReduction, dlight.gpu.Fallback)


@tvm.transform.module_pass(opt_level=0, name="ScheduleRestCuda")
class ScheduleRest:
    """Module pass: schedule every PrimFunc that is not yet scheduled, for the CUDA target in scope.

    It belongs behind LegalizeOps, FuseOps and FuseTIR, and behind RewriteDataflowReshape.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for gv, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and not (func.attrs and SCHEDULED in func.attrs):
                rules = [rule() for rule in RULES]
                scheduled = dlight.ApplyDefaultSchedule(*rules)(tvm.IRModule({gv: func}))[gv]
                mod.update_func(gv, on_device(scheduled))
        return mod
