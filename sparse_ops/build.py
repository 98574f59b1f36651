"""Compile a Relax module that uses our ops, and pack its weights."""

import tvm

from tir_kernels.dispatch import current_target

from .program import Program, pack_params
from .transform import pipeline_for

__all__ = ["Program", "build", "pack_params", "unchecked"]


def build(
    mod: tvm.IRModule,
    target: tvm.target.Target | None = None,
    lift_params: bool = False,
    precision: str = "float32",
) -> Program:
    """Compile `mod` for `target`, by default that in scope, else the host CPU with all of its instructions, by `pipeline_for`.

    `lift_params=True`: a function with the attribute `num_input`, as `export_tvm` makes them, takes what `pack_params`
    returns in place of its parameters, so that weights are packed once and are not part of what is compiled.
    Without it weights that are constants are packed while compiling. The plain `tvm.compile` takes such modules too, but packs
    at every call. `precision`: one of `transform.precision.PRECISIONS` inside of the module, "tf32" on CUDA alone.
    What is returned may be called from any number of threads, see `Program`.

    Raises ValueError for another precision, or one that the target has not, or a kind of target that has no kernels.
    """
    target = current_target(target)
    return Program(tvm.compile(mod, target=target, relax_pipeline=pipeline_for(target, precision, lift_params)))


def unchecked() -> tvm.transform.PassContext:
    """A scope: what is built inside does not check the layout of arguments, for callers that pass what `arrays.as_tensor` made.

    Dtypes and shapes are still checked, once for a call instead of by every kernel, which is half of all code to compile.
    """
    return tvm.transform.PassContext(config={"tirx.disable_assert": True})
