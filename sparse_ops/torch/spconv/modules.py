"""`SparseModule`, `SparseSequential`, and layers of torch that take a SparseConvTensor too."""

import sys
from collections import OrderedDict
from functools import cache

import torch
from torch import nn

from .core import is_sparse
from .fused import norm_and_activation

PACKAGES = (__package__, "spconv.pytorch")


class SparseModule(nn.Module):
    """Base of what takes a SparseConvTensor in a SparseSequential."""

    def __init__(self, name=None):
        super().__init__()
        self.name = name
        self._sparse_unique_name = ""


def _ours_or_theirs(module, *names: str) -> bool:
    """Whether a module is one of these classes of ours, or of spconv's where a program has imported it."""
    return isinstance(module, _classes(names, "spconv.pytorch" in sys.modules))


@cache
def _classes(names: tuple[str, ...], with_theirs: bool) -> tuple[type, ...]:
    places = [sys.modules[f"{package}.{name}"] for package in PACKAGES[: 1 + with_theirs] for name in ("modules", "conv")]
    return tuple(getattr(place, name) for place in places for name in names if hasattr(place, name))


def is_spconv_module(module) -> bool:
    """Whether a module takes a SparseConvTensor; spconv's own do too."""
    return _ours_or_theirs(module, "SparseModule", "SparseBatchNorm", "SparseReLU")


def is_sparse_conv(module) -> bool:
    return _ours_or_theirs(module, "SparseConvolution")


class SparseSequential(SparseModule):
    """Modules one after the other: `SparseSequential(a, b)`, an OrderedDict of them, or `SparseSequential(first=a, then=b)`.

    What is no SparseModule is applied to the features [N, C] of a tensor, also where there are none: widths stay right.
    """

    def __init__(self, *args, **kwargs):
        super().__init__()
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            args, named = (), list(args[0].items())
        else:
            named = [(str(place), module) for place, module in enumerate(args)]
        for name, module in [*named, *kwargs.items()]:
            if name in self._modules:
                raise ValueError(f"name: expected one that is not among {list(self._modules)}, given {name!r}")
            self.add_module(name, module)

    def __getitem__(self, idx: int) -> nn.Module:
        return list(self._modules.values())[idx]

    def __len__(self) -> int:
        return len(self._modules)

    def add(self, module, name=None) -> None:
        """Put a module at the end, under its number unless a name is given. KeyError for a number that is taken."""
        if name is None:
            name = str(len(self._modules))
            if name in self._modules:
                raise KeyError(f"name: expected one that is not among {list(self._modules)}, given {name!r}")
        self.add_module(name, module)

    def forward(self, input):
        modules, place = list(self._modules.values()), 0
        while place < len(modules):
            module, taken = modules[place], 1
            if not is_sparse(input) or is_spconv_module(module):
                input = module(input)
            elif (found := norm_and_activation(modules[place : place + 2], input.features)) is not None:
                taken, features = found
                input = input.replace_feature(features)
            else:
                input = input.replace_feature(module(input.features))
            place += taken
        return input


def assign_name_for_sparse_modules(module: nn.Module) -> None:
    """Tell every SparseModule below its path, as `_sparse_unique_name`."""
    for path, below in module.named_modules():
        if _ours_or_theirs(below, "SparseModule"):
            below._sparse_unique_name = path


class _OnFeatures(nn.Module):
    """A layer of torch that may be given a SparseConvTensor: then it is applied to the features."""

    def forward(self, input):
        if is_sparse(input):
            return input.replace_feature(super().forward(input.features))
        return super().forward(input)


class SparseBatchNorm(_OnFeatures, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` of features [N, C], of a tensor or of a SparseConvTensor."""


class SparseSyncBatchNorm(_OnFeatures, nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm` of features [N, C], of a tensor or of a SparseConvTensor."""


class SparseReLU(_OnFeatures, nn.ReLU):
    """`torch.nn.ReLU` of a tensor or of the features of a SparseConvTensor."""


class SparseIdentity(_OnFeatures, nn.Identity):
    """`torch.nn.Identity` of a tensor or of the features of a SparseConvTensor."""


class PrintTensorMeta(nn.Module):
    """Prints the smallest, the largest and the mean value, and returns what it is given."""

    def forward(self, x):
        values = x if isinstance(x, torch.Tensor) else x.features
        print(values.min(), values.max(), values.mean())
        return x
