"""Compile a Relax module that uses our ops, for a CPU target."""

import tvm
from tvm import relax

from tir_kernels.isa import host_target

TRANSFORM_PARAMS = "_transform_params"


def build(mod: tvm.IRModule, target: tvm.target.Target | None = None, lift_params: bool = False) -> tvm.runtime.Executable:
    """Compile `mod` for `target` (default: the host CPU with all of its instructions).

    `lift_params=True`: functions with the attribute `num_input` take their trailing parameters through an extra function
    `<name>_transform_params`, which packs the weights once; what it returns is passed instead of the parameters.
    Without it the plain `tvm.compile` gives the same program; constants are packed while compiling either way.
    """
    target = target or host_target()
    with target:
        mod = relax.transform.LegalizeOps()(mod)
        if lift_params:
            mod = relax.transform.LiftTransformParams()(mod)
    return tvm.compile(mod, target=target)
