"""Python's int, float, len, max and min for numbers that have no value while a model is exported.

Python insists that `int(x)` and `len(x)` are ints, so torch would have to know the number, and refuses. While a model is
exported these names mean, in the modules that its classes come from, functions that keep such numbers symbolic.
"""

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch

NOT_THE_USERS = {"torch", "torchvision", "sparse_ops", "sam3d_tvm", "tir_kernels", "tvm", "numpy", "builtins"}
SYMBOLIC = (torch.SymInt, torch.SymFloat)


def _number(value: Any) -> Any:
    """The element of a tensor."""
    return value.item() if isinstance(value, torch.Tensor) else value


class _Like(type):
    """A class that takes the place of a builtin one, also in isinstance."""

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.__bases__[0])

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.__bases__[0])

    def __eq__(cls, other: Any) -> bool:
        return other is cls.__bases__[0] or other is cls

    def __hash__(cls) -> int:
        return hash(cls.__bases__[0])


class _Int(int, metaclass=_Like):
    def __new__(cls, *args, **kwargs):
        if len(args) == 1 and not kwargs and isinstance(value := _number(args[0]), SYMBOLIC):
            return torch.sym_int(value)
        return int(*args, **kwargs)


class _Float(float, metaclass=_Like):
    def __new__(cls, *args):
        if len(args) == 1 and isinstance(value := _number(args[0]), SYMBOLIC):
            return torch.sym_float(value)
        return float(*args)


def _len(value: Any) -> Any:
    return value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else len(value)


def _extreme(of_numbers, of_symbols):
    def extreme(*args, **kwargs):
        values = args if len(args) > 1 else args[0] if args and isinstance(args[0], list | tuple) else ()
        if not kwargs and any(isinstance(value, SYMBOLIC) for value in values):
            return reduce(of_symbols, values)
        return of_numbers(*args, **kwargs)

    return extreme


REPLACEMENTS = {
    "int": _Int,
    "float": _Float,
    "len": _len,
    "max": _extreme(max, torch.sym_max),
    "min": _extreme(min, torch.sym_min),
}


@contextmanager
def symbolic_builtins(module: torch.nn.Module) -> Iterator[None]:
    """A scope in which modules of the packages that a model's classes come from have these in place of Python's."""
    packages = {type(part).__module__.partition(".")[0] for part in module.modules()} - NOT_THE_USERS
    changed = []
    for name, python in list(sys.modules.items()):
        if name.partition(".")[0] in packages and isinstance(space := getattr(python, "__dict__", None), dict):
            for builtin, function in REPLACEMENTS.items():
                if builtin not in space and hasattr(builtins, builtin):
                    space[builtin] = function
                    changed.append((space, builtin))
    try:
        yield
    finally:
        for space, builtin in changed:
            space.pop(builtin, None)
