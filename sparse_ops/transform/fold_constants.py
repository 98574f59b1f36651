"""What depends on constants alone, such as the packing of weights, is computed while compiling."""

from math import prod

import tvm
from tvm import relax, tirx

from tir_kernels.cuda.gpu import ON_DEVICE
from tir_kernels.dispatch import host_target

from .cpu.schedule_rest import ScheduleRest
from .rewrite import Walk, op_is, rewrite_pass, shape_of, static

FREE = 1024  # elements of a result without inputs up to which it is worth a constant


@tvm.transform.module_pass(opt_level=0, name="FoldConstants")
class FoldConstants:
    """Module pass: calls of kernels on constants become constants. Run LegalizeOps before.

    As `relax.transform.FoldConstant`, which compiles a kernel anew for every call, without vectors, and so takes most of the
    time that compiling a model takes. Kernels are run on the host, whatever the target is; those for a device stay.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        kernels = _kernels(mod)
        if not kernels:
            return mod
        with (target := host_target()):
            library = tvm.compile(ScheduleRest()(tvm.IRModule(kernels)), target=target)

        def fold(walk: Walk, call: relax.Call) -> relax.Expr | None:
            if not _is_foldable(call) or call.args[0].name_hint not in kernels:
                return None
            args = [walk.value(arg) for arg in call.args[1].fields]
            if not all(isinstance(arg, tvm.ir.GenericConst) for arg in args):
                return None
            out = tvm.runtime.empty([int(dim) for dim in shape_of(call)], str(call.ty.dtype))
            library[call.args[0].name_hint](*(arg.value for arg in args), out)
            return relax.const(out)

        return rewrite_pass("FoldConstants", fold)(mod)


def _is_foldable(call: relax.Expr) -> bool:
    """Whether a call of a kernel gives one tensor of known size, and is worth a constant."""
    if not isinstance(call, relax.Call) or not op_is(call, "call_tir") or len(call.args) > 2 or shape_of(call) is None:
        return False
    sizes = list(map(static, shape_of(call)))
    return None not in sizes and (len(call.args[1].fields) > 0 or prod(sizes) <= FREE)


def _kernels(mod: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    """The kernels that are called on constants, by name."""
    found = {}
    for function in mod.functions.values():
        constants = set()
        for block in function.body.blocks if isinstance(function, relax.Function) else ():
            for binding in block.bindings:
                value = binding.value
                if _is_foldable(value) and all(
                    isinstance(arg, tvm.ir.GenericConst) or arg in constants for arg in value.args[1].fields
                ):
                    if ON_DEVICE in (mod[value.args[0]].attrs or {}):
                        continue
                    constants.add(binding.var)
                    name = value.args[0].name_hint
                    found[name] = mod[value.args[0]].with_attr("global_symbol", name)
    return found
