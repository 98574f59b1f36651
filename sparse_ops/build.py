"""Compile a Relax module that uses our ops, for a CPU target, and pack its weights."""

from collections.abc import Callable

import tvm
import tvm.relax.op.vm  # LazyTransformParams needs it and does not import it
import tvm_ffi
from tvm import relax

from tir_kernels.isa import host_target

TRANSFORM_PARAMS = "_transform_params"
READ_PARAMETER = "sparse_ops.read_parameter"
STORE_PARAMETER = "sparse_ops.store_parameter"


def build(mod: tvm.IRModule, target: tvm.target.Target | None = None, lift_params: bool = False) -> tvm.runtime.Executable:
    """Compile `mod` for `target` (default: the host CPU with all of its instructions).

    `lift_params=True`: a function with the attribute `num_input`, as `export_tvm` makes them, takes what `pack_params`
    returns in place of its parameters, so that weights are packed once and are not part of what is compiled.
    Without it weights that are constants are packed while compiling. The plain `tvm.compile` takes such modules too, but packs
    at every call.
    """
    target = target or host_target()
    with target:
        mod = relax.transform.LegalizeOps()(mod)  # makes the packing of weights a call of its own
        if lift_params:
            mod = _lazy(relax.transform.LiftTransformParams()(mod))
        else:
            mod = relax.transform.FoldConstant()(mod)  # TVM's own pipeline for CPUs does not
    return tvm.compile(mod, target=target)


def pack_params(vm: relax.VirtualMachine, name: str, read: Callable[[int], tvm.runtime.Tensor]) -> list[tvm.runtime.Tensor]:
    """The packed parameters of function `name` of a module built with `lift_params=True`, to be passed after its inputs.

    `read(i)` returns parameter i in the order of `export_tvm`. It is called once for each parameter that the function
    uses, and the result dropped after its last use: weights of any size never lie in memory twice.
    """
    packed = {}

    def store(index: int, value: tvm.runtime.Tensor) -> None:
        packed[index] = value.copyto(tvm.cpu())  # its memory is used again by the next ones

    vm[name + TRANSFORM_PARAMS](tvm_ffi.convert(read), tvm_ffi.convert(store))
    return [packed[i] for i in range(len(packed))]


@tvm.register_global_func(READ_PARAMETER)
def _read_parameter(source: Callable, index: int):
    return source(index)


@tvm.register_global_func(STORE_PARAMETER)
def _store_parameter(sink: Callable, index: int, value: tvm.runtime.Tensor):
    sink(index, value)


def _lazy(mod: tvm.IRModule) -> tvm.IRModule:
    """Let the functions that LiftTransformParams made read and store one parameter at a time, by the functions above."""
    kernels = {gv: f for gv, f in mod.functions_items() if not isinstance(f, relax.Function)}
    for gv, function in mod.functions_items():
        if gv.name_hint.endswith(TRANSFORM_PARAMS):
            source, sink = (relax.Var(name, relax.AnyType()) for name in ("source", "sink"))
            passes = [
                relax.transform.RewriteDataflowReshape(),
                relax.transform.ToNonDataflow(),
                relax.transform.RemovePurityChecking(),
                relax.transform.LazyTransformParams(READ_PARAMETER, STORE_PARAMETER, [source], [sink]),
            ]
            alone = tvm.transform.Sequential(passes)(tvm.IRModule(kernels | {gv: function}))
            mod.update_func(gv, alone[gv.name_hint])
    return mod
