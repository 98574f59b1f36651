"""From any Relax module to what the virtual machine of TVM runs on a CUDA device, with our kernels wherever they apply."""

import tvm

from tir_kernels.dispatch import host_target

from ...devices import cuda_graphs_in_use
from ..cpu.schedule_rest import ScheduleRest as ScheduleRestOfCpu
from ..lift_params import LiftParams
from ..precision import to_precision
from ..stages import to_kernels, to_virtual_machine
from .keep_out import KeepOnDevice
from .schedule_rest import ScheduleRest
from .scratch import ScratchAsResults
from .status import ReadStatus


def cuda_pipeline(precision: str = "float32", lift_params: bool = False) -> tvm.transform.Pass:
    """All passes from a Relax module to one that is compiled for a CUDA device; options as in `cpu_pipeline`.

    What our kernels can do they do; the rest is legalized, fused, and scheduled by dlight's rules. What kernels refuse is read
    once a call, see `ReadStatus`.

    Raises ValueError for another precision, and when run for a target of another kind.
    """
    return _pipeline(precision, lift_params, ScheduleRest())


def cuda_packing_pipeline(precision: str = "float32") -> tvm.transform.Pass:
    """As `cuda_pipeline` with `lift_params`, but what packs parameters is scheduled for this CPU, and nothing else of use.

    With it weights are packed for a device that this machine does not have.
    """
    return _pipeline(precision, True, ScheduleRestHere())


def _pipeline(precision: str, lift_params: bool, schedule_rest: tvm.transform.Pass) -> tvm.transform.Pass:
    narrow = to_precision(precision)

    @tvm.transform.module_pass(opt_level=0, name="CudaPipeline")
    def pipeline(mod: tvm.IRModule, context) -> tvm.IRModule:
        target = tvm.target.Target.current(allow_none=True)
        if target is None or target.kind.name != "cuda":
            given = "none" if target is None else f"kind {target.kind.name!r}"
            raise ValueError(f"target: expected a target of kind 'cuda', given {given}")
        passes = [
            *to_kernels(narrow, [KeepOnDevice(), LiftParams()] if lift_params else []),
            schedule_rest,
            *to_virtual_machine([ReadStatus(), *([ScratchAsResults()] if cuda_graphs_in_use() else [])]),
        ]
        with target:
            return tvm.transform.Sequential(passes)(mod)

    return pipeline


@tvm.transform.module_pass(opt_level=0, name="ScheduleRestHere")
class ScheduleRestHere:
    """Module pass: `cpu.schedule_rest.ScheduleRest` for this CPU, whatever the target in scope."""

    def transform_module(self, mod: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        with host_target():
            return ScheduleRestOfCpu()(mod)
