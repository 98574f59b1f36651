"""Sequences of modules."""

from collections import OrderedDict
from collections.abc import Iterator

from tvm.relax.frontend import nn

from ..op.numbers import shown
from .carrier import SymbolicSparseTensor


class SparseSequential(nn.Module):
    """Modules one after the other: `SparseSequential(a, b)`, an OrderedDict of them, or `SparseSequential(first=a, then=b)`.

    Parameters are named as in torch, `0.weight` or `first.weight`. Functions, and modules of TVM's own, are applied to the
    features [N, C] of a sparse tensor.
    """

    def __init__(self, *modules, **named):
        self._names: list[str] = []
        if len(modules) == 1 and isinstance(modules[0], OrderedDict):
            named, modules = dict(modules[0]) | named, ()
        for module in modules:
            self.add(module)
        for name, module in named.items():
            self.add(module, name)

    def add(self, module, name: str | None = None) -> "SparseSequential":
        """Put a module at the end, under its number unless a name is given; returns the container.

        ValueError for what cannot be called, and for a name that is taken or has a dot.
        """
        name = str(len(self._names)) if name is None else name
        if not isinstance(name, str) or not name or "." in name or hasattr(self, name):
            raise ValueError(f"SparseSequential: name: expected one without a dot that is not taken, given {shown(name)}")
        if not callable(module):
            raise ValueError(f"SparseSequential: module: expected a module or a function of features, given {shown(module)}")
        self._names.append(name)
        setattr(self, name, module)
        return self

    append = add

    def __getitem__(self, index):
        """A module by its place or its name."""
        return getattr(self, index if isinstance(index, str) else self._names[index])

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator:
        return (getattr(self, name) for name in self._names)

    def forward(self, x):
        """What the last module returns."""
        for module in self:
            dense = not isinstance(module, nn.Module) or (
                type(module).__module__.startswith("tvm.") and not isinstance(module, nn.ModuleList)
            )
            x = x.with_feats(module(x.feats)) if dense and isinstance(x, SymbolicSparseTensor) else module(x)
        return x
