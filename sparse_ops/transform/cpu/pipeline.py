"""From any Relax module to what the virtual machine of TVM runs on a CPU, with our kernels wherever they apply."""

import tvm

from ..lift_params import LiftParams
from ..precision import to_precision
from ..stages import to_kernels, to_virtual_machine
from .schedule_rest import ScheduleRest
from .small_calls import SmallCalls


def cpu_pipeline(precision: str = "float32", lift_params: bool = False) -> tvm.transform.Pass:
    """All passes from a Relax module to a compiled one: `tvm.compile(mod, target, relax_pipeline=cpu_pipeline())`.

    The module may come from anywhere, `tvm.relax.frontend.torch` for example; batch and sequence may be symbolic. What our
    kernels can do they do; the rest is legalized, fused and scheduled. `precision`: see `to_precision`. Name a target, such as
    `tir_kernels.dispatch.host_target()`: without one TVM compiles for any CPU, without wide vectors.

    Weights that are constants are packed while compiling. Those that are parameters are packed at every call, unless with
    `lift_params`: then functions with the attribute `num_input` are changed as `LiftParams` says, and
    `sparse_ops.build.pack_params` packs once.

    Raises ValueError for another precision, and when run for a target that is no CPU.
    """
    narrow = to_precision(precision)

    @tvm.transform.module_pass(opt_level=0, name="CpuPipeline")
    def pipeline(mod: tvm.IRModule, context) -> tvm.IRModule:
        target = tvm.target.Target.current(allow_none=True) or tvm.target.Target("llvm")
        if target.kind.name != "llvm":
            raise ValueError(f"target: expected a CPU target of kind 'llvm', given kind {target.kind.name!r}")
        passes = [
            *to_kernels(narrow, [LiftParams()] if lift_params else []),
            ScheduleRest(),
            SmallCalls(),
            *to_virtual_machine([]),
        ]
        with target:
            return tvm.transform.Sequential(passes)(mod)

    return pipeline
