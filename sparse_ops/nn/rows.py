"""Modules that work on each row by itself: linear layers and activations."""

from tvm import relax
from tvm.relax.frontend import nn

from tir_kernels.spec.activation import ACTIVATIONS

from .. import op
from ..op.numbers import as_int, shown
from ..op.register import check_choice
from .carrier import SymbolicSparseTensor, emit

Rowwise = nn.Tensor | SymbolicSparseTensor


def feats_of(x: Rowwise, name: str = "x") -> nn.Tensor:
    """The rows [N, C] of a tensor or of a sparse tensor; ValueError for anything else."""
    feats = x.feats if isinstance(x, SymbolicSparseTensor) else x
    if not isinstance(feats, nn.Tensor) or feats.ndim != 2:
        raise ValueError(f"{name}: expected a tensor [N, C] or a SymbolicSparseTensor, given {x!r}")
    return feats


def like(x: Rowwise, feats: nn.Tensor) -> Rowwise:
    """New features in the form of `x`."""
    return x.with_feats(feats) if isinstance(x, SymbolicSparseTensor) else feats


def expr_of(x: Rowwise | None, name: str = "x") -> relax.Expr | None:
    """The expression behind an optional argument."""
    return None if x is None else feats_of(x, name)._expr


def check_count(owner: str, **counts) -> tuple[int, ...]:
    """The arguments as ints; ValueError unless every one is an integer of at least 1."""
    numbers = tuple(map(as_int, counts.values()))
    for (name, value), number in zip(counts.items(), numbers, strict=True):
        if number is None or number < 1:
            raise ValueError(f"{owner}: {name}: expected an int of at least 1, given {shown(value)}")
    return numbers


class Linear(nn.Module):
    """`activation(gate[b] * (x @ weight.T + bias) + residual)` over rows.

    Parameters: weight [out_features, in_features] of `dtype` (float32, bfloat16 or float16), bias float32 [out_features].
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: str = "float32"):
        sizes = check_count("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = sizes
        self.weight = nn.Parameter((self.out_features, self.in_features), dtype)
        self.bias = nn.Parameter((self.out_features,), "float32") if bias else None

    def forward(
        self,
        x: Rowwise,
        residual: Rowwise | None = None,
        activation: str = "none",
        gate: nn.Tensor | None = None,
        batch_index: nn.Tensor | None = None,
    ) -> Rowwise:
        """x `dtype` [N, in_features], residual `dtype` [N, out_features] -> `dtype` [N, out_features].

        gate float32 [B, out_features], which a row takes by `batch_index` int32 [N]; a sparse tensor brings that of its sites.
        """
        if feats_of(x).shape[1] != self.in_features:
            raise ValueError(f"Linear: x: expected {self.in_features} channels, given {feats_of(x).shape[1]}")
        if batch_index is None and isinstance(x, SymbolicSparseTensor) and gate is not None:
            batch_index = x.sites.batch_index()
        bias, gate, index = (None if value is None else value._expr for value in (self.bias, gate, batch_index))
        call = op.linear(expr_of(x), self.weight._expr, bias, expr_of(residual, "residual"), activation, gate, index)
        return like(x, emit(call, "linear"))

    def parts(self, x: Rowwise, count: int) -> list[Rowwise]:
        """The output cut into `count` equal ranges of columns, each a tensor of its own, without a copy of the output.

        The weight is cut instead, which happens once where parameters are packed once. ValueError if they do not divide.
        """
        (count,) = check_count("Linear", count=count)
        if self.out_features % count:
            raise ValueError(f"Linear: count: expected a divisor of {self.out_features} columns, given {count}")
        width, result = self.out_features // count, []
        for i in range(count):
            weight, bias = (
                None if p is None else emit(relax.op.strided_slice(p._expr, [0], [i * width], [(i + 1) * width]))._expr
                for p in (self.weight, self.bias)
            )
            result.append(like(x, emit(op.linear(expr_of(x), weight, bias), "linear")))
        return result


class Activation(nn.Module):
    """One of `ACTIVATIONS`, by element. Layers that take `activation=` compute it in passing instead."""

    def __init__(self, name: str):
        check_choice("nn.Activation", "name", name, [name for name in ACTIVATIONS if name != "none"])
        self.name = name

    def forward(self, x: Rowwise) -> Rowwise:
        """x [N, C] -> [N, C], dtype of x."""
        return like(x, emit(op.activation(expr_of(x), self.name), self.name))


def modulated_add(x: Rowwise, y: Rowwise, gate: nn.Tensor, batch_index: nn.Tensor | None = None) -> Rowwise:
    """`x + y * gate[b]`: a residual with a gate for each batch element.

    x, y [N, C], gate float32 [B, C], which a row takes by `batch_index` int32 [N]; a sparse tensor brings that of its sites.
    Returns [N, C] in the form of x.
    """
    if batch_index is None and isinstance(x, SymbolicSparseTensor):
        batch_index = x.sites.batch_index()
    index = None if batch_index is None else batch_index._expr
    call = op.modulated_add(expr_of(x), expr_of(y, "y"), gate._expr, batch_index=index)
    return like(x, emit(call, "modulated_add"))


def concat(tensors: list[Rowwise]) -> Rowwise:
    """Rows side by side: [N, C1], [N, C2], ... -> [N, C1 + C2 + ...], in the form of the first.

    ValueError for sparse tensors on other sites than the first.
    """
    first = tensors[0]
    for i, x in enumerate(tensors[1:], start=1):
        if isinstance(first, SymbolicSparseTensor) and isinstance(x, SymbolicSparseTensor) and x.sites is not first.sites:
            raise ValueError(f"tensors[{i}]: expected features on the sites of tensors[0], given others")
    return like(first, emit(relax.op.concat([expr_of(x) for x in tensors], axis=1), "concat"))
