"""From torch's exported graph to a Relax function: our converters first, TVM's importer for the rest, torch's word on both."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import tvm
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from sparse_ops.op.memory import emit_checked_shape

from .clean import clean
from .context import Context, dtype_name
from .errors import explained, line_of
from .own_ops import NAMESPACE
from .registry import CONVERTERS, Converter, converter_of, name_of, names_of
from .sizes import Symbols, fresh, is_number, known, plain, same


def import_program(
    program: torch.export.ExportedProgram, converters: Mapping[str, Converter], function: str = "main"
) -> tvm.IRModule:
    """A module whose `main` takes the inputs of `program` and then its parameters. `converters`: the user's. Names of what else
    is in the module have `function` in them.

    Raises ValueError that names the op and the line of the model for what is not covered.
    """
    clean(program)
    importer = Importer(CONVERTERS | dict(converters), function)
    return importer.from_exported_program(
        program,
        keep_params_as_input=True,
        unwrap_unit_return_tuple=True,
        no_bind_return_tuple=False,
        custom_convert_map=None,
    )


class Importer(ExportedProgramImporter):
    """TVM's importer, whose converters come second, and whose results are compared with what torch says of them."""

    def __init__(self, converters: Mapping[str, Converter], function: str):
        super().__init__()
        self.function = function
        self._own, self._theirs = converters, self.convert_map
        self.convert_map = _Every(self._convert)
        self.symbols = Symbols()
        self.kept: dict[relax.Expr, relax.Var] = {}  # the rows that a mask keeps, by the mask

    def create_input_vars(self, exported_program: torch.export.ExportedProgram):
        parameters, inputs, ranges = super().create_input_vars(exported_program)
        for node in exported_program.graph.find_nodes(op="placeholder"):
            if node.name in inputs:
                for size, dim in zip(node.meta["val"].shape, inputs[node.name].ty.shape.values, strict=True):
                    self.symbols.bind(size, plain(dim))
        # What torch assumes of sizes, at least 2 among it, is no bound of what may come.
        return parameters, inputs, {name: (0, upper) for name, (_, upper) in ranges.items()}

    def _check_unsupported_func_type(self, nodes) -> None:
        for node in nodes:
            if node.op == "call_function" and not self._covers(node.target):
                raise explained(node, name_of(node.target), "there is no converter for it")

    def _covers(self, target: Any) -> bool:
        return converter_of(target, self._own) is not None or self._name(target) in self._theirs

    @staticmethod
    def _name(target: Any) -> str:
        """As TVM's importer calls an op; only torch's own have a converter there."""
        foreign = isinstance(target, torch._ops.OpOverload) and target.namespace not in ("aten", "prims", "torchvision")
        return "" if foreign else target.__name__

    def default(self, node: fx.Node) -> Any:
        """What TVM's importer makes of a node."""
        if self._name(node.target) not in self._theirs:
            raise ValueError("there is no converter for it")
        return self._theirs[self._name(node.target)](node)

    def _convert(self, node: fx.Node) -> Any:
        own = converter_of(node.target, self._own)
        try:
            result = own(Context(node, self)) if own else self.default(node)
            return self._settled(node, result)
        except Exception as error:  # whatever a converter and TVM's type inference raise
            words = str(error).strip() or type(error).__name__
            raise explained(node, name_of(node.target), words) from error

    def _settled(self, node: fx.Node, result: Any) -> Any:
        """The result with the dtypes and shapes that torch says it has. ValueError if they cannot be those."""
        expected = node.meta.get("val")
        if not isinstance(expected, list | tuple):
            if isinstance(result, list | tuple) and len(result) == 1:
                (result,) = result
            if isinstance(expected, torch.Tensor) and not isinstance(result, relax.Expr):
                raise ValueError(f"expected a Relax expression of its converter, given {type(result).__name__}")
            return self._settle(node, result, expected)
        if isinstance(result, relax.Expr) and isinstance(result.ty, relax.TupleType):
            result = [self.block_builder.emit(relax.TupleGetItem(result, i)) for i in range(len(result.ty.fields))]
        if isinstance(result, relax.Expr):  # TVM leaves out what is only for training
            result = [result]
        result = [*result, *[None] * (len(expected) - len(result))]
        return [self._settle(node, one, other) for one, other in zip(result, expected, strict=True)]

    def _settle(self, node: fx.Node, result: Any, expected: Any) -> Any:
        if isinstance(expected, torch.SymInt | int) and is_number(result):
            self.symbols.bind(expected, result)
        if not isinstance(expected, torch.Tensor) or not isinstance(getattr(result, "ty", None), relax.TensorType):
            return result
        if str(result.ty.dtype) != (dtype := dtype_name(expected.dtype)):
            result = self.block_builder.emit(relax.op.astype(result, dtype))
        made_by = node.args[0] if node.target is operator.getitem else node
        if result.ty.shape is None and names_of(made_by.target)[-1].startswith(NAMESPACE):
            return result  # an array of a map, whose dimensions depend on the target
        if result.ty.ndim not in (-1, expected.ndim):
            raise ValueError(f"expected {expected.ndim} dimensions as in torch, the import has {result.ty.ndim}")
        have = [None] * expected.ndim if result.ty.shape is None else [plain(dim) for dim in result.ty.shape.values]
        dims, equal = [], True
        for size, dim in zip(expected.shape, have, strict=True):
            want = self.symbols.value(size)
            if want is None:
                self.symbols.bind(size, want := fresh("size") if dim is None else dim)
            elif known(want) is not None and known(dim) is not None and known(want) != known(dim):
                shapes = f"{list(expected.shape)} as in torch, the import has {have}"
                raise ValueError(f"expected the shape {shapes}")
            dims.append(want)
            equal = equal and dim is not None and same(want, dim)
        if equal:
            return result
        if result.ty.shape is None:
            return self.block_builder.match_cast(result, relax.TensorType(dims, dtype))
        what = f"{name_of(node.target)}{line_of(node.meta.get('stack_trace'), short=True)}"
        return emit_checked_shape(self.block_builder, what, result, dims)


class _Every(dict):
    """A table that has one converter for everything."""

    def __init__(self, convert: Callable[[fx.Node], Any]):
        super().__init__()
        self._convert = convert

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> Callable[[fx.Node], Any]:
        return self._convert
