"""From a Relax module of functions over named parameters to a component: passes, code, packed parameters.

`from_torch` brings functions from PyTorch here, `from_nn` those that are written with `sparse_ops.nn`.
"""

import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import tvm
import tvm.support.cc
import tvm_ffi
from tvm import relax

from sparse_ops.deploy.component import LIBRARY, MODULE, Component, compile_lowered, pack
from sparse_ops.deploy.files import write_bytes
from sparse_ops.deploy.manifest import FunctionSpec, Manifest, PackedSpec, TensorSpec
from sparse_ops.deploy.reading import brief
from sparse_ops.deploy.weights import State
from sparse_ops.op.register import RUNS_IN
from sparse_ops.program import Program
from sparse_ops.transform import packing_pipeline_for, pipeline_for
from sparse_ops.transform.lift_params import PACKED_NAMES, TRANSFORM_PARAMS
from sparse_ops.transform.precision import QUANTIZED, features_of, gains
from tir_kernels.cuda.gpu import MULTIPLIES
from tir_kernels.dispatch import host_target


def component_from_relax(
    name: str,
    module: tvm.IRModule,
    functions: Mapping[str, FunctionSpec],
    parameters: Sequence[TensorSpec],
    state: State,
    precision: str,
    target: tvm.target.Target,
) -> Component:
    """The component `name` of a module whose functions take parameters behind their inputs, as `LiftParams` expects them.

    `functions` without their packed parameters, which are found here; `parameters` in the order that these count them in.
    """
    with target:
        lowered = pipeline_for(target, precision, lift_params=True)(module)
    packed, functions = _number_packed(lowered, functions, parameters)
    manifest = Manifest.of(name, precision, target, parameters=tuple(parameters), packed=packed, functions=functions)
    if precision in QUANTIZED and not any(spec.is_quantized for spec in packed):
        here = str(target) == str(host_target())
        cpu, there = ("this CPU", "here") if here else (f"the target {target}", "there")
        reason = "has no layers that gain by it" if gains(precision, target) else f"gains nothing by it on {cpu}"
        warnings.warn(f"precision: {name} {reason}: {precision} is {features_of(precision, target)} {there}", stacklevel=3)
    executable = compile_lowered(lowered, target)
    runs_here = manifest.problem_here() is None
    library = _linked(executable) if runs_here and _can_link() else None

    def write(folder: Path, form: str | None) -> str:
        if form == "library" and not _can_link():
            raise ValueError("form: expected 'module', as no C compiler is found that could link a library")
        if form == "library" or (form is None and _can_link()):
            if library is not None and library.file.exists():
                shutil.copyfile(library.file, folder / LIBRARY)
            else:
                _link(executable, folder / LIBRARY, target)
            return LIBRARY
        write_bytes(folder / MODULE, tvm.ir.save_json(lowered).encode())
        return MODULE

    code = (library.load() if library else executable) if runs_here else None
    packing = code or _packing_here(module, lowered, target, precision)
    return Component(manifest, code, pack(Program(packing), manifest, state), write)


class _Library:
    """Code linked once, in a temporary folder that lives as long as this object: what runs here is loaded from it, and what is
    saved is a copy of it.

    To link code that runs already would generate it a second time. Also TVM notes a scope for each constant of code that was
    run, and from then on warns of each whenever the code is saved, and whenever that is loaded.
    """

    def __init__(self, executable: tvm.runtime.Executable):
        self._folder = tempfile.TemporaryDirectory(prefix="sparse_ops_")
        self.file = Path(self._folder.name) / LIBRARY
        executable.export_library(str(self.file))

    def load(self) -> tvm.runtime.Module:
        return tvm.runtime.load_module(str(self.file))


def _linked(executable: tvm.runtime.Executable) -> _Library | None:
    """None where the compiler fails; `save` will say why."""
    try:
        return _Library(executable)
    except (RuntimeError, OSError):
        return None


def _link(executable: tvm.runtime.Executable, file: Path, target: tvm.target.Target) -> None:
    """ValueError if the compiler fails, as it does on code for another architecture."""
    try:
        executable.export_library(str(file))
    except RuntimeError as error:
        reason = f"the C compiler cannot link a library for {target}: {brief(error)}"
        raise ValueError(f"form: expected 'module', as {reason}") from error


def _can_link() -> bool:
    """Whether there is a C compiler to link a library."""
    return tvm.support.cc.get_cc() is not None


def static_shape(ty: relax.TensorType, sizes: Mapping[str, str]) -> tuple[int | str, ...]:
    """Its shape for a manifest; symbolic sizes have their names in `sizes`, or else those that TVM prints, or none."""
    if ty.shape is None:
        return ("?",) * ty.ndim
    return tuple(int(n) if isinstance(n, tvm.tirx.IntImm) else sizes.get(str(n), str(n)) for n in ty.shape)


def _number_packed(
    lowered: tvm.IRModule, functions: Mapping[str, FunctionSpec], parameters: Sequence[TensorSpec]
) -> tuple[tuple[PackedSpec, ...], dict[str, FunctionSpec]]:
    """The packed parameters of all functions, each once, and the functions with the numbers of theirs."""
    packed: dict[str, PackedSpec] = {}
    runs_in = _attributes(lowered, RUNS_IN)
    numbered = {}
    for name, function in functions.items():
        own = functions[function.code or name]  # the code says what becomes of its own parameters
        renamed = {parameters[a].name: parameters[b].name for a, b in zip(own.parameters, function.parameters, strict=True)}
        made = [
            re.sub(r"[\w.]+", lambda found, renamed=renamed: renamed.get(found[0], found[0]), str(made))
            for made in lowered[(function.code or name) + TRANSFORM_PARAMS].attrs[PACKED_NAMES]
        ]
        code = lowered[function.code or name]
        read = _weights_read(code, _attributes(lowered, MULTIPLIES))
        for key, var in zip(made, code.params[len(function.inputs) :], strict=True):
            kernel = key.partition("(")[0]
            spec = PackedSpec(key, str(var.ty.dtype), static_shape(var.ty, {}), runs_in.get(kernel) or read.get(var, ""))
            packed.setdefault(key, spec)
        order = {key: number for number, key in enumerate(packed)}
        numbered[name] = replace(function, packed=tuple(order[key] for key in made))
    return tuple(packed.values()), numbered


def _attributes(lowered: tvm.IRModule, name: str) -> dict[str, str]:
    """An attribute of kernels, by the names of those that have it."""
    return {gv.name_hint: str(f.attrs[name]) for gv, f in lowered.functions_items() if name in (f.attrs or {})}


def _weights_read(function: relax.Function, multiplies: Mapping[str, str]) -> dict[relax.Var, str]:
    """In which numbers kernels that read weights as they are, their second argument, multiply by them: by the parameters that
    these are, or views of."""
    bound = {binding.var: binding.value for block in function.body.blocks for binding in block.bindings}
    found = {}
    for call in bound.values():
        if isinstance(call, relax.Call) and getattr(call.op, "name_hint", "") in multiplies:
            weight = call.args[1]
            while isinstance(value := bound.get(weight), relax.Var | relax.Call):
                weight = value if isinstance(value, relax.Var) else value.args[0]
            found[weight] = multiplies[call.op.name_hint]
    return found


def _packing_here(
    module: tvm.IRModule, lowered: tvm.IRModule, target: tvm.target.Target, precision: str
) -> tvm.runtime.Executable:
    """What packs the parameters, for this CPU: without what it may not have the instructions for. `lowered`: the module for the
    target."""
    if passes := packing_pipeline_for(target, precision):
        with target:
            lowered = passes(module)
    transforms = {gv: f for gv, f in lowered.functions_items() if gv.name_hint.endswith(TRANSFORM_PARAMS)}
    called: list[tvm.ir.GlobalVar] = []
    for function in transforms.values():
        tvm_ffi.structural_walk(function, (tvm.ir.GlobalVar, called.append))
    return compile_lowered(tvm.IRModule(transforms | {gv: lowered[gv] for gv in called}), host_target())
