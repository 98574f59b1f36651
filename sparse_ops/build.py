"""Compile a Relax module that uses our ops, for a CPU target, and pack its weights."""

from collections.abc import Callable

import tvm
import tvm_ffi
from tvm import relax

from tir_kernels.dispatch import host_target

from .transform import pipeline_for
from .transform.lift_params import TRANSFORM_PARAMS


def build(
    mod: tvm.IRModule,
    target: tvm.target.Target | None = None,
    lift_params: bool = False,
    precision: str = "float32",
) -> tvm.runtime.Executable:
    """Compile `mod` for `target` (default: the host CPU with all of its instructions) by `transform.pipeline_for`.

    `lift_params=True`: a function with the attribute `num_input`, as `export_tvm` makes them, takes what `pack_params`
    returns in place of its parameters, so that weights are packed once and are not part of what is compiled.
    Without it weights that are constants are packed while compiling. The plain `tvm.compile` takes such modules too, but packs
    at every call. `precision`: "float32", or "bfloat16" or "float16" inside of the module.

    Raises ValueError for another precision or a target that is no CPU.
    """
    target = target or host_target()
    return tvm.compile(mod, target=target, relax_pipeline=pipeline_for(target, precision, lift_params))


def unchecked() -> tvm.transform.PassContext:
    """A scope: what is built inside does not check the layout of arguments, for callers that pass what `arrays.as_tensor` made.

    Dtypes and shapes are still checked, once for a call instead of by every kernel, which is half of all code to compile.
    """
    return tvm.transform.PassContext(config={"tirx.disable_assert": True})


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
