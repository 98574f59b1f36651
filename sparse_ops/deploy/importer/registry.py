"""Converters by the name of the op that they convert, `library::op` or `library::op.overload` as torch writes it."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .context import Context

Converter = Callable[["Context"], Any]  # returns a Relax expression or a number, or a list of them for several results
CONVERTERS: dict[str, Converter] = {}  # those of this package
NAME = re.compile(r"[A-Za-z_]\w*::[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")
PYTHON = "python"  # the library of functions on numbers that torch traces: operator.add, torch.sym_max, math.trunc


def converts(*names: str) -> Callable[[Converter], Converter]:
    """Registers a function as the converter of the ops of these names."""

    def register(function: Converter) -> Converter:
        for name in names:
            if name in CONVERTERS:
                raise ValueError(f"converter: {name} has one already")
            CONVERTERS[name] = function
        return function

    return register


def names_of(target: Any) -> tuple[str, ...]:
    """By which an op of a graph goes, the most precise first: `aten::sort.stable` and `aten::sort`; the first overload of an
    op has no name of its own, or goes by "default"."""
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name
        return (f"{name}.{target._overloadname}", name)
    return (f"{PYTHON}::{getattr(target, '__name__', target)}",)


def name_of(target: Any) -> str:
    """As users read it."""
    return names_of(target)[0].removesuffix(".default")


def converter_of(target: Any, converters: Mapping[str, Converter]) -> Converter | None:
    """None if there is none."""
    if target is operator.getitem:
        return None
    return next((converters[name] for name in names_of(target) if name in converters), None)


def check_converters(converters: Mapping[str, Converter] | None) -> dict[str, Converter]:
    """Those of a user. ValueError for what is no mapping from names of ops to functions."""
    if converters is None:
        return {}
    if not isinstance(converters, Mapping):
        raise ValueError(f"converters: expected functions by the names of ops, given {type(converters).__name__}")
    for name, function in converters.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"converters: expected names such as 'my_library::my_op' or 'aten::sort.stable', given {name!r}")
        if not callable(function):
            raise ValueError(f"converters: {name}: expected a function of a Context, given {type(function).__name__}")
    return dict(converters)
