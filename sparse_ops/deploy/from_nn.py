"""From a model written with `sparse_ops.nn` to a compiled component."""

from collections.abc import Mapping, Sequence

import tvm
from tvm import relax
from tvm.relax.frontend.nn.spec import MethodSpec

from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_relax import component_from_relax, static_shape
from sparse_ops.deploy.manifest import FunctionSpec, Structure, TensorSpec, names
from sparse_ops.deploy.weights import State, check_arrays
from sparse_ops.nn import Module
from sparse_ops.op.register import flat_types
from tir_kernels.dispatch import check_target, current_target


def component_from_nn(
    model: Module,
    functions: Mapping[str, MethodSpec],
    name: str,
    state: State,
    *,
    precision: str = "float32",
    target: tvm.target.Target | None = None,
    copies: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
) -> Component:
    """Compile functions of a model, as `export_tvm` takes them, for `target`, by default this CPU, and pack its parameters.

    `state`: arrays by the names of the parameters, float32, float16 or bfloat16, whichever the model has. `copies`, by the name
    of a function: for each copy of it, called `<function>.1` and so on, which of its parameters goes by which other name; it
    shares the function's code.

    Raises ValueError for a state that lacks a parameter, has one that is not known, or of another shape or dtype, for another
    precision, and for a target that is no CPU.
    """
    target = current_target(target)
    check_target(target)
    copies = copies or {}
    with target:
        module, own = model.export_tvm(dict(functions))
    shapes = {key: tuple(int(n) for n in parameter.shape) for key, parameter in own}
    dtypes = {key: str(parameter.dtype) for key, parameter in own}
    sources = {key: key for key in shapes} | {
        new: old for made in copies.values() for names_ in made for old, new in names_.items()
    }
    parameters = [TensorSpec(new, dtypes[old], shapes[old]) for new, old in sources.items()]
    check_arrays({spec.name: spec.shape for spec in parameters}, state)
    numbers = {spec.name: number for number, spec in enumerate(parameters)}
    specs = {}
    for function in functions:
        for copy, renamed in enumerate(({}, *copies.get(function, ()))):
            used = tuple(numbers[renamed.get(key, key)] for key in shapes)
            specs[f"{function}.{copy}" if copy else function] = _spec(module[function], used, function if copy else "")
    return component_from_relax(name, module, specs, parameters, state, precision, target)


def _spec(function: relax.Function, parameters: tuple[int, ...], code: str) -> FunctionSpec:
    inputs = function.params[: int(function.attrs["num_input"])]
    outputs = flat_types(function.ret_ty)
    result = _numbered(function.ret_ty, iter(range(len(outputs))))
    return FunctionSpec(
        tuple(TensorSpec(var.name, str(var.ty.dtype), static_shape(var.ty, {})) for var in inputs),
        tuple(
            TensorSpec(name, str(outputs[number].dtype), static_shape(outputs[number], {}))
            for number, name in names(result, "output")
        ),
        {var.name: number for number, var in enumerate(inputs)},
        result,
        parameters,
        (),
        code,
    )


def _numbered(ty: relax.Type, numbers) -> Structure:
    return next(numbers) if isinstance(ty, relax.TensorType) else [_numbered(field, numbers) for field in ty.fields]
