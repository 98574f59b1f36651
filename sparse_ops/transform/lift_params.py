"""What depends on parameters alone, such as the packing of weights, moves to a function of its own."""

import hashlib
from collections.abc import Callable

import tvm
import tvm.relax.op.vm  # LazyTransformParams needs it and does not import it
from tvm import relax

TRANSFORM_PARAMS = "_transform_params"
PARAMETER_NAMES = "parameter_names"
PACKED_NAMES = "packed_names"
READ_PARAMETER = "sparse_ops.read_parameter"
STORE_PARAMETER = "sparse_ops.store_parameter"


@tvm.transform.module_pass(opt_level=0, name="LiftParams")
class LiftParams:
    """Module pass: a function with the attribute `num_input` takes transformed parameters behind its inputs.

    Beside a function `name` comes `name_transform_params(read, store)`, which makes them from the given ones, one at a time:
    `read(i)` returns parameter i, `store(i, value)` takes transformed parameter i. Its attribute `packed_names` says of each
    how it is made, `pack_weight(layer.weight)` for example: equal names, in whichever function, are equal values. Run
    LegalizeOps before.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        parameters = {gv.name_hint: _parameter_names(f) for gv, f in mod.functions_items() if isinstance(f, relax.Function)}
        mod = relax.transform.LiftTransformParams()(mod)
        kernels = {gv: f for gv, f in mod.functions_items() if not isinstance(f, relax.Function)}
        for gv, function in mod.functions_items():
            if gv.name_hint.endswith(TRANSFORM_PARAMS):
                function = _spelled_out(function)
                names = _names(function, parameters[gv.name_hint.removesuffix(TRANSFORM_PARAMS)])
                source, sink = (relax.Var(name, relax.AnyType()) for name in ("source", "sink"))
                passes = [
                    relax.transform.RewriteDataflowReshape(),
                    relax.transform.ToNonDataflow(),
                    relax.transform.RemovePurityChecking(),
                    relax.transform.LazyTransformParams(READ_PARAMETER, STORE_PARAMETER, [source], [sink]),
                ]
                alone = tvm.transform.Sequential(passes)(tvm.IRModule(kernels | {gv: function}))
                mod.update_func(gv, alone[gv.name_hint].with_attr(PACKED_NAMES, names))
        return mod


def _parameter_names(function: relax.Function) -> list[str]:
    """Of its parameters, without its inputs: what the attribute `parameter_names` says, or those of the variables."""
    if function.attrs and PARAMETER_NAMES in function.attrs:
        return [str(name) for name in function.attrs[PARAMETER_NAMES]]
    inputs = int(function.attrs["num_input"]) if function.attrs and "num_input" in function.attrs else len(function.params)
    return [param.name for param in function.params[inputs:]]


def _spelled_out(function: relax.Function) -> relax.Function:
    """A function that returns its parameters as they are takes them apart, without which LazyTransformParams fails."""
    (bundle,) = function.params
    if not function.body.body.same_as(bundle):
        return function
    fields = [relax.Var(f"parameter{i}", field) for i, field in enumerate(bundle.ty.fields)]
    bindings = [relax.VarBinding(field, relax.TupleGetItem(bundle, i)) for i, field in enumerate(fields)]
    result = relax.Var("results", bundle.ty)
    bindings.append(relax.VarBinding(result, relax.Tuple(fields)))
    body = relax.SeqExpr([relax.BindingBlock(bindings)], result)
    return relax.Function([bundle], body, bundle.ty, function.is_pure, function.attrs)


def _names(function: relax.Function, parameters: list[str]) -> list[str]:
    """What is said of every result of a function of the bundled `parameters`: the calls that make it."""
    (bundle,) = function.params
    known: dict[relax.Var, str] = {}

    def name(value) -> str:
        if isinstance(value, relax.Var):
            return known[value]
        if isinstance(value, relax.TupleGetItem):
            return parameters[value.index] if value.tuple_value.same_as(bundle) else f"{name(value.tuple_value)}[{value.index}]"
        if isinstance(value, relax.Tuple):
            return ", ".join(map(name, value.fields))
        if isinstance(value, relax.Call):
            op, *args = value.args if value.op.name == "relax.call_tir" else (value.op, *value.args)
            called = op.name_hint if isinstance(op, relax.GlobalVar) else op.name
            return f"{called}({', '.join(map(name, args))})"
        if isinstance(value, tvm.ir.GenericConst):
            return "constant:" + hashlib.sha256(value.value.numpy().tobytes()).hexdigest()[:16]
        return str(value)

    results = []
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Tuple) and binding.var.same_as(function.body.body):
                results = [name(field) for field in binding.value.fields]
            else:
                known[binding.var] = name(binding.value)
    return results


@tvm.register_global_func(READ_PARAMETER)
def _read_parameter(source: Callable, index: int):
    return source(index)


@tvm.register_global_func(STORE_PARAMETER)
def _store_parameter(sink: Callable, index: int, value: tvm.runtime.Tensor):
    sink(index, value)
