"""What a converter is given: one call in torch's graph, its arguments in Relax, and the function that is being written."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
import tvm
from torch import fx
from tvm import relax, te

from sparse_ops.op.memory import checked_sizes

from .registry import name_of
from .sizes import count, fresh, is_number, plain, same

if TYPE_CHECKING:
    from .translate import Importer


class Context:
    """A call of an op of torch's, to be written in Relax.

    node     the call in torch's graph
    op       the name of its op, such as "aten::index_add"
    args     its arguments by the names of the op's schema, those left out by their defaults: tensors as Relax variables,
             numbers as ints, floats, or as dimensions (`tvm.tirx` expressions) where only the running module knows them
    result   what torch says of the result: a tensor without numbers, or a tuple of them; `dtype` is that of the first

    A converter returns an expression, or a list of them for several results. Shape and dtype of what it returns are compared
    with torch's afterwards; sizes that Relax does not know get their names then.
    """

    def __init__(self, node: fx.Node, importer: "Importer"):
        self.node, self._importer = node, importer

    @property
    def op(self) -> str:
        return name_of(self.node.target)

    @cached_property
    def args(self) -> Mapping[str, Any]:
        return {name: self._value(value) for name, value in self.nodes.items()}

    def __getitem__(self, name: str) -> Any:
        """An argument."""
        return self.args[name]

    @property
    def result(self) -> Any:
        return self.node.meta.get("val")

    def name_of(self, node: fx.Node) -> str:
        """The name of the op of another node."""
        return name_of(node.target) if node.op == "call_function" else ""

    def value_of(self, node: fx.Node) -> Any:
        """What another node before this one is in Relax."""
        return self._importer.env[node]

    def meta(self, name: str) -> Any:
        """What torch says of an argument that stands in the graph, as `result`; other arguments as they are."""
        return fx.node.map_arg(self.nodes[name], lambda node: node.meta.get("val"))

    @cached_property
    def nodes(self) -> Mapping[str, Any]:
        """The arguments as they stand in the graph."""
        schema = getattr(self.node.target, "_schema", None)
        names = [argument.name for argument in schema.arguments] if schema else [str(i) for i in range(len(self.node.args))]
        defaults = {argument.name: argument.default_value for argument in schema.arguments} if schema else {}
        return defaults | dict(zip(names, self.node.args, strict=False)) | dict(self.node.kwargs)

    @property
    def dtype(self) -> str:
        return dtype_name(next(leaf for leaf in pytree.tree_leaves(self.result) if isinstance(leaf, torch.Tensor)).dtype)

    @property
    def once(self) -> dict[relax.Expr, relax.Var]:
        """What converters of this package keep to compute it once."""
        return self._importer.kept

    @property
    def builder(self) -> relax.BlockBuilder:
        """Of the function that is being written."""
        return self._importer.block_builder

    def emit(self, expr: relax.Expr) -> relax.Var:
        """A variable that holds what `expr` computes."""
        return self.builder.emit(expr)

    def compute(self, function: Callable[..., te.Tensor], *tensors: relax.Expr) -> relax.Var:
        """What `function` makes of tensors, in TVM's tensor expressions; it may use dimensions too."""
        name = f"{function.__name__.strip('_')}_{self._importer.function}_{self.node.name}"
        return self.builder.emit_te(function, *tensors, primfunc_name_hint=name)

    def emit_all(self, call: relax.Expr) -> list[relax.Var]:
        """The tensors of a call that returns a tuple, tuples in it taken apart."""
        value = self.emit(call)
        if not isinstance(value.ty, relax.TupleType):
            return [value]
        return [part for i in range(len(value.ty.fields)) for part in self.emit_all(relax.TupleGetItem(value, i))]

    def named(self, expr: relax.Expr, dims: Sequence, dtype: str | None = None) -> relax.Var:
        """`expr` with the given dimensions, ints or `self.size()`; a fresh one among them gets its value here, others are
        compared when the module runs."""
        return self.builder.match_cast(expr, relax.TensorType(list(dims), dtype or str(expr.ty.dtype)))

    def size(self, name: str = "size") -> tvm.tirx.Var:
        """A fresh dimension, for `named`."""
        return fresh(name)

    def dims(self, tensor: relax.Expr) -> list:
        """The sizes of a tensor: ints, or dimensions that only the running module knows."""
        if tensor.ty.shape is None:
            self.refuse("the shape of an argument is not known; name it with context.named")
        return [plain(dim) for dim in tensor.ty.shape.values]

    def cast(self, tensor: relax.Expr, dtype: str) -> relax.Expr:
        return tensor if str(tensor.ty.dtype) == dtype else self.emit(relax.op.astype(tensor, dtype))

    def reshape(self, tensor: relax.Expr, dims: Sequence) -> relax.Expr:
        """As in torch, where a 0 is a size; without -1."""
        return self._importer._emit_torch_reshape(tensor, list(dims))

    def flat(self, tensor: relax.Expr) -> relax.Expr:
        """With one dimension."""
        return tensor if tensor.ty.ndim == 1 else self.reshape(tensor, [count(self.dims(tensor))])

    def broadcast(self, tensor: relax.Expr, dims: Sequence) -> relax.Expr:
        have = self.dims(tensor)
        if len(have) == len(dims) and all(map(same, have, dims)):
            return tensor
        return self.emit(relax.op.broadcast_to(tensor, relax.ShapeExpr(list(dims))))

    def permute(self, tensor: relax.Expr, axes: Sequence[int]) -> relax.Expr:
        return tensor if list(axes) == list(range(len(axes))) else self.emit(relax.op.permute_dims(tensor, list(axes)))

    def result_dims(self, given: Sequence | None = None) -> list:
        """The sizes of the result, as torch has them; in place of one that is not known here, that of `given`."""
        found = [self._importer.symbols.value(size) for size in self.result.shape]
        return found if given is None else [one if other is None else other for one, other in zip(given, found, strict=True)]

    def checked(self, dims: Sequence, least: int = 0, dtype: str = "", what: str = "") -> list:
        """Sizes that something is made of: ValueError from the running module for one that numbers from the data make less than
        `least`, or, with a `dtype`, of a tensor that does not fit into memory. Others are returned as they are."""
        if not any(self._importer.symbols.doubtful(dim) for dim in dims):
            return list(dims)
        shape = self.emit(checked_sizes(what or f"{self.op}: sizes", dims, least, dtype))
        found = [fresh("size") for _ in dims]
        self.builder.match_cast(shape, relax.ShapeType(found))
        return found

    def default(self) -> Any:
        """What TVM's importer makes of the call. ValueError if it has no converter for it."""
        return self._importer.default(self.node)

    def full(self, dims: Sequence, value: bool | int | float, dtype: str) -> relax.Var:
        return self.emit(relax.op.full(relax.ShapeExpr(list(dims)), relax.const(value, dtype), dtype))

    def tensor(self, value: Any, dtype: str | None = None) -> relax.Expr:
        """A tensor as it is, a number as one of no dimensions; cast to `dtype` if that is given."""
        if is_number(value) and not isinstance(value, int):
            whole = self.emit(relax.op.shape_to_tensor(relax.ShapeExpr([value])))
            value = self.reshape(whole, [])
        elif not isinstance(value, relax.Expr):
            return relax.const(value, dtype or dtype_name(torch.tensor(value).dtype))
        return self.cast(value, dtype) if dtype else value

    def number(self, tensor: relax.Expr, name: str = "number") -> tvm.tirx.Var:
        """The one element of an integer tensor as a dimension: a number that shapes and other numbers may be made of."""
        flat = self.reshape(self.cast(tensor, "int64"), [1])
        return self.numbers(flat, 1, name)[0]

    def numbers(self, tensor: relax.Expr, size: int, name: str = "number") -> list[tvm.tirx.Var]:
        """The elements of an int64 tensor [size] as dimensions."""
        shape = self.emit(relax.op.tensor_to_shape(tensor))
        found = [fresh(name) for _ in range(size)]
        self.builder.match_cast(shape, relax.ShapeType(found))
        self._importer.symbols.doubt(found)
        return found

    def refuse(self, reason: str) -> None:
        """ValueError that names the op, `reason`, and the line of the model."""
        raise ValueError(reason)

    def _value(self, given: Any) -> Any:
        if isinstance(given, fx.Node):
            return self._importer.env[given]
        if isinstance(given, list | tuple):
            return [self._value(part) for part in given]
        return given


def dtype_name(dtype: torch.dtype) -> str:
    """As Relax writes it."""
    return str(dtype).removeprefix("torch.")
