"""Kernels that fusion leaves alone."""

import tvm

from ..op.register import SCHEDULED

OPAQUE = 8  # TVM's number for kernels that nothing fuses with


@tvm.transform.module_pass(opt_level=0, name="KeepKernels")
class KeepKernels:
    """Module pass: nothing fuses with kernels that are scheduled already, nor with those that take sizes as numbers.

    FuseTIR fails on the latter where two of them take the same size.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for gv, func in mod.functions_items():
            if isinstance(func, tvm.tirx.PrimFunc) and (SCHEDULED in (func.attrs or {}) or takes_sizes(func)):
                mod.update_func(gv, func.with_attr("op_pattern", OPAQUE))
        return mod


def takes_sizes(func: tvm.tirx.PrimFunc) -> bool:
    """Whether a parameter is a number instead of a buffer."""
    return not all(isinstance(param.ty, tvm.tirx.BufferType) for param in func.params)
