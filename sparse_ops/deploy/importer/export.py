"""torch.export for the import: which ops stay whole, and what torch asks that rows known only at run time cannot answer."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch.overrides import TorchFunctionMode

from .builtins_of_sizes import symbolic_builtins
from .errors import refused
from .registry import PYTHON

SEVERAL = 2
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
    arguments = _of_several(arguments, dynamic)
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


def _of_several(arguments: tuple, dynamic: Mapping[str, Any] | None) -> tuple:
    """The arguments with at least two of whatever a Dim counts: torch takes a size of 0 or 1 for one that never changes. Values
    are not looked at."""
    leaves, structure = pytree.tree_flatten(arguments)
    if dynamic is None:
        return arguments
    counted = [_dims(given) for given in structure.flatten_up_to(tuple(dynamic.values()))]
    few = {
        dim.__name__
        for leaf, dims in zip(leaves, counted, strict=True)
        for axis, dim in dims.items()
        if not hasattr(dim, "root") and leaf.shape[axis] < SEVERAL
    }

    def enlarged(leaf: torch.Tensor, dims: dict[int, Any]) -> torch.Tensor:
        shape = list(leaf.shape)
        for axis, dim in dims.items():
            if hasattr(dim, "root"):  # derived of another one
                shape[axis] = dim.fn(SEVERAL) if dim.root.__name__ in few else shape[axis]
            elif dim.__name__ in few:
                shape[axis] = SEVERAL
        return leaf if shape == list(leaf.shape) else leaf.new_zeros(shape)

    return structure.unflatten([enlarged(leaf, dims) for leaf, dims in zip(leaves, counted, strict=True)])


def _dims(given: Any) -> dict[int, Any]:
    """The Dims of one tensor by its axes, of what torch.export takes for them."""
    sizes = given.items() if isinstance(given, Mapping) else enumerate(given or ())
    return {axis: size for axis, size in sizes if hasattr(size, "__name__")}


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
