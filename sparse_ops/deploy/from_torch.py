"""From a PyTorch module to a compiled component: torch.export, import into Relax, our passes, code, packed parameters."""

import copy
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
import tvm
from torch.export.graph_signature import InputKind, TensorArgument
from tvm import relax

from sparse_ops.deploy.calibrate import calibrate, is_integer
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_relax import component_from_relax, static_shape
from sparse_ops.deploy.importer import CONVERTERS, Converter, TooCoarse, check_converters, compare, export, import_program
from sparse_ops.deploy.manifest import FunctionSpec, Structure, TensorSpec, names
from sparse_ops.op.numbers import as_int, check_flag, shown
from sparse_ops.op.register import check_choice, flat_types
from sparse_ops.torch.spconv.core import is_sparse
from sparse_ops.transform.lift_params import PARAMETER_NAMES
from sparse_ops.transform.precision import PRECISIONS, features_of
from sparse_ops.transform.products import PRODUCTS_ONLY
from tir_kernels.dispatch import check_target, current_target


def port_component(
    module: torch.nn.Module,
    inputs: tuple | Mapping[str, tuple],
    name: str,
    *,
    dynamic: Any = None,
    precision: str = "float32",
    target: tvm.target.Target | None = None,
    converters: Mapping[str, Converter] | None = None,
    check: bool = True,
    products_only: bool = False,
) -> Component:
    """Compile a module, which is any that torch.export takes, for `target`, by default this CPU.

    `inputs`: example tensors for `forward`, or, to export several methods over the same parameters, such by the name of the
    method; tensors may stand in lists, tuples and dicts; a SparseConvTensor that the module returns comes as the dict of its
    `features` and `indices`. `dynamic`: what torch.export calls dynamic_shapes, for `forward`, or by the name of the method.
    `precision`: "float32", or "bfloat16", "float16", "int8" or "int7" inside, see
    `sparse_ops.transform.precision.to_precision`; with the last two `calibrate` makes it more exact. `converters`:
    functions of an `importer.Context` by the names of ops, such as "my_library::my_op", for ops that are not covered or are to
    be written otherwise, see docs/bridge.md.

    `check`: compare the component with the module in torch, once on the example and once on it cut to about half along its
    dynamic dimensions; False for components whose example is costly to run. Components for another CPU are not compared. Where
    integers are too coarse for channels that stand out, what `calibrate` makes of the component and the example is compared in
    its place; the result is not calibrated, and a warning says so.

    `products_only`: of a narrower `precision` only what linear layers multiply is narrow, see `to_precision`; the manifest says
    so of each function.

    Parameters, and buffers of floats that are part of the state, keep their names and are packed once; the module is not
    changed. The component may be for another target than this CPU: then it can be saved, but not run.

    Raises ValueError for arguments of another kind, a module whose parameters are not float32 on the CPU, one that torch.export
    or the import does not take, naming the op and the line, another precision, a target that is no CPU, and for a component
    that computes something else than torch, naming the output and by how much.
    """
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module: expected a torch.nn.Module, given {type(module).__name__}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"name: expected a name, given {name!r}")
    methods = inputs if isinstance(inputs, Mapping) else {"forward": inputs}
    dynamic = dynamic if isinstance(inputs, Mapping) else {"forward": dynamic}
    if strange := set(dynamic or ()) - set(methods):
        raise ValueError(f"dynamic: expected methods of inputs, given {', '.join(map(repr, sorted(strange)))}")
    check_flag("deploy.port_component", "check", check)
    check_flag("deploy.port_component", "products_only", products_only)
    target, converters = current_target(target), check_converters(converters)
    check_target(target)
    check_choice("deploy.port_component", "precision", precision, PRECISIONS)
    module = _with_named_buffers(module)
    state = {key: value for key, value in module.state_dict(keep_vars=True).items() if isinstance(value, torch.nn.Parameter)}
    for key, value in state.items():
        if value.dtype != torch.float32 or value.device.type != "cpu":
            raise ValueError(f"module: expected float32 parameters on a CPU, given {key}: {value.dtype} on {value.device}")

    functions, exported, imported = {}, {}, tvm.IRModule()
    for method, example in methods.items():
        dynamic_of = (dynamic or {}).get(method)
        one, functions[method], exported[method] = _import(module, method, example, dynamic_of, list(state), converters)
        if products_only:
            one[method] = one[method].with_attr(PRODUCTS_ONLY, True)
            functions[method] = replace(functions[method], products_only=True)
        imported.update(one)
    parameters = [TensorSpec(key, "float32", tuple(value.shape)) for key, value in state.items()]
    arrays = {key: value.detach().numpy() for key, value in state.items()}
    component = component_from_relax(name, imported, functions, parameters, arrays, precision, target)
    if check and component.manifest.problem_here() is None:
        precision = precision if is_integer(component) else features_of(precision, target)
        for method, (program, arguments) in exported.items():
            outputs = [spec.name for spec in functions[method].outputs]
            theirs = _Method(module, method).with_names
            what = f"module: {method}"
            try:
                compare(what, component[method], theirs, program, arguments, outputs, precision)
            except TooCoarse as error:
                calibrated = calibrate(component, {method: [arguments]}, arrays)
                compare(f"{what}, calibrated", calibrated[method], theirs, program, arguments, outputs, precision)
                problem = str(error).rpartition(";")[0]
                warnings.warn(f"{problem}; calibrated by this example it does not: calibrate the component", stacklevel=2)
    return component


def _with_named_buffers(module: torch.nn.Module) -> torch.nn.Module:
    """The module in evaluation mode, over the same memory; buffers of floats that are part of its state are parameters."""
    memo = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}  # shared, not copied
    module = copy.deepcopy(module, memo).eval()
    for owner in module.modules():
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None and buffer.is_floating_point() and name not in owner._non_persistent_buffers_set:
                delattr(owner, name)
                owner.register_parameter(name, torch.nn.Parameter(buffer, requires_grad=False))
    return module


class _Method(torch.nn.Module):
    """A method of a module as the `forward` of a module of its own, which is what torch.export takes."""

    def __init__(self, module: torch.nn.Module, method: str):
        super().__init__()
        self.module, self.method = module, method

    def with_names(self, **arguments):
        return self(arguments)

    def forward(self, arguments: dict):
        return _in_tensors(getattr(self.module, self.method)(**arguments))


def _in_tensors(result: Any) -> Any:
    """A result with {"features", "indices"} for every SparseConvTensor in it, which torch.export does not know."""
    return pytree.tree_map(lambda x: {"features": x.features, "indices": x.indices} if is_sparse(x) else x, result)


def _import(
    module: torch.nn.Module,
    method: str,
    example: tuple,
    dynamic: Any,
    state: list[str],
    converters: Mapping[str, Converter],
) -> tuple[tvm.IRModule, FunctionSpec, tuple[torch.export.ExportedProgram, dict[str, Any]]]:
    """A method as a function of its inputs and the parameters that it uses, and what it calls; its packed parameters are not
    known yet; what it was made of, and the example by name."""
    named = _arguments(module, method, example)
    dynamic = _check_dynamic(method, named, dynamic)
    try:
        shapes = None if dynamic is None else {"arguments": dynamic}
        program = export(_Method(module, method), (named,), shapes, CONVERTERS | dict(converters))
        _check_outputs(program)
        imported = import_program(program, converters, method)
    except Exception as error:  # whatever torch and TVM raise for what they do not take
        words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"module: {method} cannot be ported: {words}") from error
    parameters = [spec.target for spec in program.graph_signature.input_specs if spec.kind is InputKind.PARAMETER]
    used = [target.removeprefix("module.") for target in parameters]
    function = imported["main"].without_attr("params").with_attr({"global_symbol": method, PARAMETER_NAMES: used})
    leaves, structure = pytree.tree_flatten(named)
    arguments, result = _numbered(structure), _numbered(program.call_spec.out_spec)
    taken, returned = list(function.params[: len(leaves)]), flat_types(function.ret_ty)
    sizes = _named_sizes(structure, dynamic, taken)
    inputs, outputs = _specs(arguments, "", [var.ty for var in taken], sizes), _specs(result, "output", returned, sizes)
    called = {gv: func for gv, func in imported.functions_items() if gv.name_hint != "main"}
    module = tvm.IRModule(called | {method: function})
    spec = FunctionSpec(inputs, outputs, arguments, result, tuple(map(state.index, used)), ())
    return module, spec, (program, named)


def _check_dynamic(method: str, named: Mapping[str, Any], dynamic: Any) -> dict[str, Any] | None:
    """By the names of arguments. ValueError for other names, another number of them, and axes that a tensor does not have."""
    if dynamic is None:
        return None
    if isinstance(dynamic, tuple | list) and len(dynamic) == len(named):
        dynamic = dict(zip(named, dynamic, strict=True))
    if not isinstance(dynamic, Mapping) or dynamic.keys() - named.keys():
        expected = f"axes by the names of {method}'s arguments {', '.join(named)}, or a tuple of {len(named)}"
        raise ValueError(f"dynamic: expected {expected}, given {shown(dynamic)}")
    for name, axes in dynamic.items():
        if not isinstance(named[name], torch.Tensor) or axes is None:  # of what holds several tensors torch looks at itself
            continue
        rank = named[name].ndim
        if isinstance(axes, Mapping):
            fits = all(as_int(axis) is not None and 0 <= axis < rank for axis in axes)
        else:
            fits = isinstance(axes, tuple | list) and len(axes) == rank
        if not fits:
            expected = f"sizes by axis, 0 to {rank - 1}, or {rank} of them"
            raise ValueError(f"dynamic: {name}: expected {expected}, given {shown(axes)}")
    return dict(dynamic)


def _check_outputs(program: torch.export.ExportedProgram) -> None:
    """ValueError for what is no tensor."""
    by_number = dict(names(_numbered(program.call_spec.out_spec), "output"))
    for number, spec in enumerate(program.graph_signature.output_specs):
        if not isinstance(spec.arg, TensorArgument):
            given = getattr(spec.arg, "value", "a size")
            raise ValueError(f"{by_number[number].lstrip('.')}: expected a tensor, given {given}: leave out what is none")


def _arguments(module: torch.nn.Module, method: str, example: tuple) -> dict[str, Any]:
    """The example by the names of the method's arguments. ValueError if they do not go together."""
    if not isinstance(example, tuple):
        raise ValueError(f"inputs: expected a tuple of tensors for {method}, given {type(example).__name__}")
    if not callable(getattr(module, method, None)):
        raise ValueError(f"inputs: expected methods of the module, given {method!r}")
    signature = inspect.signature(getattr(module, method))
    try:
        arguments = dict(signature.bind(*example).arguments)
    except TypeError as error:
        raise ValueError(f"inputs: expected {method}{signature}, given {len(example)} tensors: {error}") from error
    if {signature.parameters[name].kind for name in arguments} & {inspect.Parameter.VAR_POSITIONAL}:
        raise ValueError(f"inputs: expected a method with named arguments only, given {method}{signature}")
    for leaf in pytree.tree_leaves(arguments):
        if not isinstance(leaf, torch.Tensor):
            raise ValueError(f"inputs: expected tensors for {method}, given {type(leaf).__name__}")
    return pytree.tree_map(torch.clone, arguments)  # torch.export takes a tensor that is given twice for one argument


def _named_sizes(structure: pytree.TreeSpec, dynamic: Mapping | None, inputs: list[relax.Var]) -> dict[str, str]:
    """The user's names of sizes, by the names that torch.export gave them."""
    if dynamic is None:
        return {}
    found = {}
    for given, var in zip(structure.flatten_up_to(dict(dynamic)), inputs, strict=True):
        for axis, size in given.items() if isinstance(given, Mapping) else enumerate(given or ()):
            if hasattr(size, "__name__"):
                found[str(var.ty.shape[axis])] = size.__name__
    return found


def _numbered(structure: pytree.TreeSpec) -> Structure:
    return _plain(structure.unflatten(list(range(structure.num_leaves))))


def _plain(structure: Any) -> Structure:
    """Lists for tuples, as in JSON."""
    if isinstance(structure, Mapping):
        return {str(key): _plain(part) for key, part in structure.items()}
    return structure if isinstance(structure, int) else [_plain(part) for part in structure]


def _specs(structure: Structure, root: str, types: list[relax.TensorType], sizes: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """Of tensors in the order of their numbers in `structure`."""
    by_number = dict(names(structure, root))
    return tuple(TensorSpec(by_number[i].lstrip("."), str(ty.dtype), static_shape(ty, sizes)) for i, ty in enumerate(types))
