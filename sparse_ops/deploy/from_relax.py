"""From a Relax module of functions over named parameters to a component: passes, code, packed parameters.

`from_torch` brings functions from PyTorch here, `from_nn` those that are written with `sparse_ops.nn`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import tvm
import tvm.support.cc
import tvm_ffi
from tvm import relax

from sparse_ops.deploy.component import LIBRARY, MODULE, Component, compile_lowered, machine_of, pack
from sparse_ops.deploy.files import write_bytes
from sparse_ops.deploy.manifest import FunctionSpec, Manifest, TensorSpec
from sparse_ops.deploy.weights import State
from sparse_ops.transform import pipeline_for
from sparse_ops.transform.lift_params import PACKED_NAMES, TRANSFORM_PARAMS
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
    executable = compile_lowered(lowered, target)

    def write(folder: Path, form: str | None) -> str:
        linkable = tvm.support.cc.get_cc() is not None
        if form == "library" and not linkable:
            raise ValueError("form: expected 'module', as no C compiler is found that could link a library")
        if form == "library" or (form is None and linkable):
            executable.export_library(str(folder / LIBRARY))
            return LIBRARY
        write_bytes(folder / MODULE, tvm.ir.save_json(lowered).encode())
        return MODULE

    runs_here = not manifest.lacking()
    packing = executable if runs_here else compile_lowered(_packing_alone(lowered), host_target())
    return Component(manifest, executable if runs_here else None, pack(machine_of(packing), manifest, state), write)


def flat_types(ty: relax.Type) -> list[relax.TensorType]:
    """The tensors of a type, tuples taken apart."""
    return [ty] if isinstance(ty, relax.TensorType) else [tensor for field in ty.fields for tensor in flat_types(field)]


def static_shape(ty: relax.TensorType, sizes: Mapping[str, str]) -> tuple[int | str, ...]:
    """Its shape for a manifest; symbolic sizes have their names in `sizes`, or else those that TVM prints, or none."""
    if ty.shape is None:
        return ("?",) * ty.ndim
    return tuple(int(n) if isinstance(n, tvm.tirx.IntImm) else sizes.get(str(n), str(n)) for n in ty.shape)


def _number_packed(
    lowered: tvm.IRModule, functions: Mapping[str, FunctionSpec], parameters: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], dict[str, FunctionSpec]]:
    """The packed parameters of all functions, each once, and the functions with the numbers of theirs."""
    packed: dict[str, TensorSpec] = {}
    numbered = {}
    for name, function in functions.items():
        own = functions[function.code or name]  # the code says what becomes of its own parameters
        renamed = {parameters[a].name: parameters[b].name for a, b in zip(own.parameters, function.parameters, strict=True)}
        made = [
            re.sub(r"[\w.]+", lambda found, renamed=renamed: renamed.get(found[0], found[0]), str(made))
            for made in lowered[(function.code or name) + TRANSFORM_PARAMS].attrs[PACKED_NAMES]
        ]
        for key, var in zip(made, lowered[function.code or name].params[len(function.inputs) :], strict=True):
            packed.setdefault(key, TensorSpec(key, str(var.ty.dtype), static_shape(var.ty, {})))
        order = {key: number for number, key in enumerate(packed)}
        numbered[name] = replace(function, packed=tuple(order[key] for key in made))
    return tuple(packed.values()), numbered


def _packing_alone(lowered: tvm.IRModule) -> tvm.IRModule:
    """Without what this CPU may not have the instructions for."""
    transforms = {gv: f for gv, f in lowered.functions_items() if gv.name_hint.endswith(TRANSFORM_PARAMS)}
    called: list[tvm.ir.GlobalVar] = []
    for function in transforms.values():
        tvm_ffi.structural_walk(function, (tvm.ir.GlobalVar, called.append))
    return tvm.IRModule(transforms | {gv: lowered[gv] for gv in called})
