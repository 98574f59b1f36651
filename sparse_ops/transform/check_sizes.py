"""Sizes of arguments that do not fit are a ValueError that names the argument.

The virtual machine compares them too, with what a function declares, but what it raises is a RuntimeError of a `match_cast`.
So a function declares sizes of its inputs that may be anything, and compares them itself.
"""

import tvm
from tvm import relax, tirx

from tir_kernels.guards import RAISE_SIZE

from .lift_params import TRANSFORM_PARAMS


@tvm.transform.module_pass(opt_level=0, name="CheckSizes")
class CheckSizes:
    """Module pass: functions raise ValueError for an input of another size than they declare.

    Looked at are the tensors among the inputs (all parameters, or the first `num_input` of them): sizes that are numbers, and
    those that occurred before, as the rows of coordinates that are those of features. Run it when kernels are called already
    and before VMShapeLower. Nothing is added where asserts are disabled, see `sparse_ops.build.unchecked`.
    """

    def transform_module(self, mod: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        if context.config.get("tirx.disable_assert", False):
            return mod
        builder = relax.BlockBuilder(mod)
        for gv, function in mod.functions_items():
            if isinstance(function, relax.Function) and not gv.name_hint.endswith(TRANSFORM_PARAMS):
                builder.update_func(gv, _checked(builder, gv.name_hint, function))
        return builder.get()


def _checked(builder: relax.BlockBuilder, name: str, function: relax.Function) -> relax.Function:
    """The function with a call at its start of a kernel that compares sizes, if any are to be compared."""
    attributes = function.attrs or {}
    inputs = int(attributes["num_input"]) if "num_input" in attributes else len(function.params)
    seen: dict[tirx.Var, str] = {}  # the input in which a size occurs first
    params, casts, sizes, comparisons = [], [], [], []
    for place, param in enumerate(function.params):
        shape = getattr(param.ty, "shape", None)
        if place >= inputs or not isinstance(param.ty, relax.TensorType) or not isinstance(shape, relax.ShapeExpr):
            params.append(param)
            continue
        dims = []
        for axis, dim in enumerate(shape.values):
            if isinstance(dim, tirx.Var) and dim not in seen:
                seen[dim] = param.name
                dims.append(dim)
                continue
            dims.append(free := tirx.Var(f"{param.name}_{axis}", "int64"))
            comparisons.append((param.name, axis, len(sizes), seen.get(dim, "") if isinstance(dim, tirx.Var) else ""))
            sizes += [free, dim]
        if any(given is not declared for given, declared in zip(dims, shape.values, strict=True)):
            params.append(relax.Var(param.name, relax.TensorType(dims, param.ty.dtype)))
            casts.append(relax.MatchCast(param, params[-1], param.ty))
        else:
            params.append(param)
    if not comparisons:
        return function
    check = builder.add_func(_kernel(len(sizes), comparisons), f"{name}_check_sizes")
    call = relax.op.vm.call_tir_dyn(check, relax.Tuple([relax.ShapeExpr(sizes)]))
    start = relax.BindingBlock([relax.VarBinding(relax.Var("checked", relax.TupleType([])), call), *casts])
    body = relax.SeqExpr([start, *function.body.blocks], function.body.body)
    return relax.Function(params, body, function.ret_ty, function.is_pure, function.attrs)


def _kernel(count: int, comparisons: list[tuple[str, int, int, str]]) -> tirx.PrimFunc:
    """Of `count` sizes, given and expected in turn: raises for the first pair that differs."""
    sizes = [tirx.Var(f"size{i}", "int64") for i in range(count)]
    steps = []
    for name, axis, place, other in comparisons:
        given, expected = sizes[place : place + 2]
        refusal = tirx.call_packed(RAISE_SIZE, name, tirx.const(axis, "int64"), given, expected, other)
        steps.append(tirx.IfThenElse(given != expected, tirx.Evaluate(refusal), None))
    return tirx.PrimFunc(sizes, tirx.SeqStmt(steps) if len(steps) > 1 else steps[0])
