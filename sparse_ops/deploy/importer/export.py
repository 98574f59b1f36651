"""torch.export for the import: which ops stay whole, and what torch asks that rows known only at run time cannot answer."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .builtins_of_sizes import symbolic_builtins
from .errors import refused
from .registry import PYTHON

ATTENTION, LINEAR = torch.ops.aten.scaled_dot_product_attention.default, torch.ops.aten.linear.default


class _BatchNormOfAnyRows(TorchFunctionMode):
    """Batch norm in evaluation mode as an op that does not ask whether its input is empty."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.batch_norm:
            given = inspect.signature(F.batch_norm).bind(*args, **(kwargs or {}))
            given.apply_defaults()
            x, mean, variance, weight, bias, training, momentum, eps = given.arguments.values()
            if not training:
                op = torch.ops.aten._native_batch_norm_legit_no_training.default
                return op(x, weight, bias, mean, variance, momentum, eps)[0]
        return function(*args, **(kwargs or {}))


def export(
    module: torch.nn.Module, arguments: tuple, dynamic: Mapping[str, Any] | None, kept: Iterable[str]
) -> torch.export.ExportedProgram:
    """A module in core ops of torch, and those of `kept`, which have a converter of their own."""
    with torch.no_grad(), _BatchNormOfAnyRows(), symbolic_builtins(module):
        try:
            program = torch.export.export(module, arguments, dynamic_shapes=dynamic)
        except Exception as error:  # whatever torch raises for what it does not take
            raise refused(error) from error
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.item.default):
        node.target = torch.ops.aten._local_scalar_dense.default  # torch decomposes no item() of x[-1], of as many rows as come
    table = torch.export.default_decompositions()
    table.pop(LINEAR, None)
    for op in _overloads(kept):
        table.pop(op, None)
    # Kept whole only if plain: the import overlooks its scale, and takes only masks of floats.
    if all(len(node.args) == 3 and not node.kwargs for node in program.graph.find_nodes(op="call_function", target=ATTENTION)):
        table.pop(ATTENTION, None)
    return program.run_decompositions(table)


def _overloads(names: Iterable[str]) -> Iterable[torch._ops.OpOverload]:
    """The ops of torch that go by these names, as far as there are such."""
    for name in names:
        library, _, op = name.partition("::")
        op, _, overload = op.partition(".")
        packet = getattr(getattr(torch.ops, library), op, None) if library != PYTHON else None
        for each in [overload] if overload else packet.overloads() if packet else []:
            op = getattr(packet, each, None)
            if op is not None and not any(argument.alias_info for argument in op._schema.arguments):  # a view is none
                yield op
