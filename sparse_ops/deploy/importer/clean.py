"""The exported graph without what checks sizes: torch assumes at least two of a size that the data decide, and would refuse
0 and 1 rows, which compiled code handles like any other number."""

import torch
from torch import fx

CHECKS = {
    "aten::_assert_scalar",
    "aten::_assert_async",
    "aten::_assert_tensor_metadata",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
}


def clean(program: torch.export.ExportedProgram) -> None:
    """Drop assertions, and what only they read. What a model asserts of its own is dropped with them."""
    for module in program.graph_module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in reversed(list(module.graph.nodes)):
            target = node.target
            if node.op == "call_function" and isinstance(target, torch._ops.OpOverload) and target._schema.name in CHECKS:
                node.replace_all_uses_with(None)
                module.graph.erase_node(node)
        module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        module.recompile()
