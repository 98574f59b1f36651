"""Eager face, containers: sequences and tables of modules, layers without weights, and the ways out to dense arrays.

Names and argument order are spconv's and torch's. `name` is accepted and ignored.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, ClassVar

from ..op.numbers import shown
from ..op.register import check_choice
from . import functional
from .arrays import as_kind, as_tensor, describe, dtype_of, kind_of
from .module import SparseModule, is_module
from .norm import folded, has_hooks
from .tensor import SparseTensor, cat


def _sparse(x) -> SparseTensor:
    if not isinstance(x, SparseTensor):
        raise ValueError(f"input: expected a SparseTensor, given {describe(x)}")
    return x


class _Modules(SparseModule):
    """Modules under names: numbers where none are given, as in torch."""

    _rebuilt: ClassVar[dict] = {"_folded": dict}

    def __init__(self, *modules, **named):
        self._modules: dict[str, Any] = {}
        self._folded: dict[int, Any] = {}  # layers that do the work of several modules, by the place of the first
        if len(modules) == 1 and isinstance(modules[0], OrderedDict):
            named, modules = dict(modules[0]) | named, ()
        for module in modules:
            self.add(module)
        for name, module in named.items():
            self.add(module, name)

    def add(self, module, name: str | None = None):
        """Put a module at the end, under its number unless a name is given; returns the container.

        ValueError for what cannot be called, and for a name that is taken or has a dot.
        """
        name = str(len(self._modules)) if name is None else name
        if not isinstance(name, str) or not name or "." in name or name in self._modules:
            raise ValueError(f"name: expected one without a dot that is not among {list(self._modules)}, given {shown(name)}")
        if not callable(module):
            raise ValueError(f"module: expected a module or a function of features, given {describe(module)}")
        self._modules[name] = module
        return self

    append = add

    def named_children(self) -> Iterator[tuple[str, Any]]:
        return ((name, module) for name, module in self._modules.items() if is_module(module))

    def __getitem__(self, index):
        """A module by its place or its name, or a container of a slice."""
        if isinstance(index, slice):
            return type(self)(OrderedDict(list(self._modules.items())[index]))
        if isinstance(index, str):
            return self._modules[index]
        return list(self._modules.values())[index]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator:
        return iter(self._modules.values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={module!r}' for name, module in self._modules.items())})"


class SparseSequential(_Modules):
    """Modules one after the other: `SparseSequential(a, b)`, an OrderedDict of them, or `SparseSequential(first=a, then=b)`.

    What is no `SparseModule`, such as a module of torch or a function of arrays, is applied to the features [N, C] of a tensor.
    A module of torch is given torch tensors, over the same memory, also where the features are numpy's or TVM's.

    A batch norm directly behind a convolution, `BatchNorm1d` or torch's in evaluation, becomes part of its weights, with an
    activation behind both: they run as one convolution, which is made anew when an array of theirs changes.
    """

    def forward(self, x):
        modules, place = list(self._modules.values()), 0
        while place < len(modules):
            module, taken = folded(self._folded, modules, place, x, _activation_of)
            place += taken
            if isinstance(module, SparseModule):
                x = module(x)
            elif isinstance(x, SparseTensor):
                x = x.replace_feature(_on_array(module, x.feats))
            else:
                x = _on_array(module, x)
        return x


def _activation_of(module) -> str | None:
    """Which activation a module is, ours or torch's, if it is one and no more."""
    if isinstance(module, _Activation):
        return module.activation if type(module) in (ReLU, SiLU, GELU) else None
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(module, torch.nn.Module) or has_hooks(module):
        return None
    if type(module) is torch.nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return {torch.nn.ReLU: "relu", torch.nn.SiLU: "silu"}.get(type(module))


def _on_array(module, array):
    """A module that is none of ours, on features or on a dense array."""
    torch, kind = sys.modules.get("torch"), kind_of(array)
    if torch is None or not isinstance(module, torch.nn.Module) or kind not in ("numpy", "tvm"):
        return module(array)
    tensor = as_kind(as_tensor(array, "input", (dtype_of(array),), tuple(array.shape)), "torch")
    with torch.no_grad():  # what is no torch tensor records no gradients
        out = module(tensor).contiguous()
    return as_kind(as_tensor(out, "output", (dtype_of(out),), tuple(out.shape)), kind)


class ConcatTable(_Modules):
    """A list of what every module makes of the input."""

    def forward(self, x) -> list:
        return [module(x) for module in self._modules.values()]


class JoinTable(SparseModule):
    """A list of tensors on the same voxels -> one, with their features side by side: `cat`."""

    def forward(self, x) -> SparseTensor:
        return cat(x)


class AddTable(SparseModule):
    """A list of tensors on the same voxels -> their sum; see `sparse_add` for other voxels."""

    def forward(self, x) -> SparseTensor:
        if not isinstance(x, list | tuple) or not x:
            raise ValueError(f"input: expected a list of SparseTensors, given {shown(x)}")
        return sum(map(_sparse, x))


class Identity(SparseModule):
    """What it is given."""

    def forward(self, x):
        return x


class _Activation(SparseModule):
    """An activation of every element of a tensor's features, or of an array float32, bfloat16 or float16 of any shape."""

    activation = ""

    def forward(self, x):
        if isinstance(x, SparseTensor):
            return x.with_result(functional.activation(x.feats, self.activation), x.coordinates)
        return functional.activation(x, self.activation)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ReLU(_Activation):
    """`max(x, 0)`. `inplace` is accepted and ignored: nothing is changed in place."""

    activation = "relu"

    def __init__(self, inplace: bool = False):
        super().__init__()


class SiLU(ReLU):
    """`x * sigmoid(x)`. `inplace` is accepted and ignored."""

    activation = "silu"


class GELU(_Activation):
    """`x` times the normal distribution function at x; `approximate="tanh"`: by the tangent, as torch has it."""

    def __init__(self, approximate: str = "none"):
        super().__init__()
        check_choice("GELU", "approximate", approximate, ("none", "tanh"))
        self.activation = "gelu" if approximate == "none" else "gelu_tanh"


class ToDense(SparseModule):
    """A tensor -> [B, C, *spatial_shape], or [B, *spatial_shape, C] if not `channels_first`: `SparseTensor.dense`."""

    def __init__(self, channels_first: bool = True):
        super().__init__()
        self.channels_first = channels_first

    def forward(self, x: SparseTensor):
        return _sparse(x).dense(self.channels_first)


class _GlobalPool(SparseModule):
    """One row for each batch element, over its voxels: a tensor of [N, C] -> an array [B, C] of the dtype and kind of these.

    An element without voxels has 0. ValueError for the first row that repeats another.
    """

    mode = ""

    def forward(self, x: SparseTensor):
        _sparse(x).coordinates.check_distinct()
        return functional.segment_pool(x.feats, x.coordinates.batch_index(), x.batch_size, self.mode)


class SparseGlobalMaxPool(_GlobalPool):
    """The maximum over the voxels of each batch element, [B, C]; 0 for an element without voxels."""

    mode = "max"


class SparseGlobalAvgPool(_GlobalPool):
    """The mean over the voxels of each batch element, [B, C]; 0 for an element without voxels."""

    mode = "mean"


class SparseGlobalSumPool(_GlobalPool):
    """The sum over the voxels of each batch element, [B, C]; 0 for an element without voxels."""

    mode = "sum"


SparseReLU, SparseIdentity = ReLU, Identity
GlobalMaxPool, GlobalAvgPool, GlobalSumPool = SparseGlobalMaxPool, SparseGlobalAvgPool, SparseGlobalSumPool

__all__ = [
    "GELU",
    "AddTable",
    "ConcatTable",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GlobalSumPool",
    "Identity",
    "JoinTable",
    "ReLU",
    "SiLU",
    "SparseGlobalAvgPool",
    "SparseGlobalMaxPool",
    "SparseGlobalSumPool",
    "SparseIdentity",
    "SparseModule",
    "SparseReLU",
    "SparseSequential",
    "ToDense",
]
