"""Sizes that the data decide are known before what is computed of them.

FuseOps moves what it fuses behind the last argument, and with it the `match_cast` of a size past those that take the size
and nothing else: it looks at arguments, not at shapes.
"""

import tvm
import tvm_ffi
from tvm import relax


@tvm.transform.module_pass(opt_level=0, name="SizesFirst")
class SizesFirst:
    """Module pass: bindings stand behind all that they read, the sizes in their types among it; else in their order."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for gv, function in mod.functions_items():
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
                known = set(_variables([param.ty for param in function.params]))
                blocks = [_ordered(block, known) for block in function.body.blocks]
                if any(new is not old for new, old in zip(blocks, function.body.blocks, strict=True)):
                    body = relax.SeqExpr(blocks, function.body.body)
                    made = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
                    mod.update_func(gv, relax.transform.Normalize()(tvm.IRModule({gv: made}))[gv])
        return mod


def _ordered(block: relax.BindingBlock, known: set[tvm.ir.Var]) -> relax.BindingBlock:
    """The block itself, if its bindings are in order or it is none of dataflow. `known`: the sizes of the function's inputs."""
    if not isinstance(block, relax.DataflowBlock):
        return block
    bindings = list(block.bindings)
    makers: dict[tvm.ir.Var, int] = {}  # the binding that each variable, a size among them, gets its value from
    for number, binding in enumerate(bindings):
        makers[binding.var] = number
        if isinstance(binding, relax.MatchCast):
            for size in set(_variables([binding.ty])) - known:
                makers.setdefault(size, number)
    reads = [{makers[v] for v in _variables([b.value, b.var.ty]) if v in makers} - {i} for i, b in enumerate(bindings)]
    order: dict[int, None] = {}
    for number in range(len(bindings)):
        waiting = [number]
        while waiting:
            before = reads[waiting[-1]] - order.keys()
            if before & set(waiting):
                return block  # a size that is compared first and made from what has it: nothing here knows better
            waiting += sorted(before, reverse=True)
            if not before:
                order.setdefault(waiting.pop())
    return block if list(order) == sorted(order) else relax.DataflowBlock([bindings[number] for number in order])


def _variables(parts: list) -> list[tvm.ir.Var]:
    found: list[tvm.ir.Var] = []
    for part in parts:
        tvm_ffi.structural_walk(part, (tvm.ir.Var, found.append))
    return found
