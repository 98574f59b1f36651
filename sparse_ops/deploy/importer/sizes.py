"""Sizes that only the running module knows: torch's symbols as dimensions of Relax."""

import itertools
import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import sympy
import torch
import tvm
import tvm_ffi
from torch.utils._sympy import functions as symbolic

from sparse_ops.transform.rewrite import static as known

_fresh = itertools.count()


def fresh(name: str) -> tvm.tirx.Var:
    """A dimension that nothing is known of yet."""
    return tvm.tirx.Var(f"{name}_{next(_fresh)}", "int64")


def is_number(value: Any) -> bool:
    """Whether it is an integer, known now or when the module runs."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        tvm.ir.is_prim_expr(value) and not isinstance(value, bool | float)
    )


def plain(value: Any) -> Any:
    """An int for a size that is known, else itself."""
    found = known(value)
    return value if found is None else found


def same(one: Any, other: Any) -> bool:
    """Whether two sizes are equal for certain."""
    return tvm.sym.Analyzer().can_prove_equal(_expr(one), _expr(other))


def _expr(value: Any):
    return tvm.tirx.IntImm("int64", value) if isinstance(value, int) else value


def count(dims: Sequence) -> Any:
    """How many elements a tensor of these sizes has."""
    return reduce(operator.mul, dims, 1)


class Symbols:
    """What torch's symbols stand for."""

    def __init__(self):
        self._values: dict[str, Any] = {}
        self._doubtful: list[tvm.tirx.Var] = []  # numbers from the data, which may be negative

    def doubt(self, numbers: Sequence[tvm.tirx.Var]) -> None:
        self._doubtful += numbers

    def doubtful(self, size: Any) -> bool:
        """Whether a size may be negative: a number from the data is in it, or something is subtracted."""
        if isinstance(size, int):
            return size < 0
        found: list = []
        tvm_ffi.structural_walk(size, ((tvm.tirx.Sub, tvm.tirx.IntImm, tvm.ir.Var), found.append))
        return any(
            isinstance(part, tvm.tirx.Sub) or (known(part) or 0) < 0 or any(part.same_as(one) for one in self._doubtful)
            for part in found
        )

    def bind(self, size: Any, value: Any) -> None:
        """`size` is `value`, if it is a symbol that has none yet."""
        name = _symbol(size)
        if name is not None:
            self._values.setdefault(name, value)

    def value(self, size: Any) -> Any:
        """The dimension that a size of torch's is; None if it is not known or cannot be said."""
        if isinstance(size, int):
            return size
        return self._of(size.node.expr) if isinstance(size, torch.SymInt) else None

    def _of(self, expr: sympy.Expr) -> Any:
        if expr.is_Integer:
            return int(expr)
        if isinstance(expr, sympy.Symbol):
            return self._values.get(expr.name)
        parts = [self._of(part) for part in expr.args]
        if any(part is None for part in parts):
            return None
        for kinds, combine in _COMBINE:
            if isinstance(expr, kinds):
                result = parts[0]
                for part in parts[1:]:
                    result = combine(result, part)
                return result
        return None


def _symbol(size: Any) -> str | None:
    expr = size.node.expr if isinstance(size, torch.SymInt) else None
    return expr.name if isinstance(expr, sympy.Symbol) else None


def floor_div(a, b):
    return a // b if isinstance(a, int) and isinstance(b, int) else tvm.tirx.floordiv(_expr(a), _expr(b))


def floor_mod(a, b):
    return a % b if isinstance(a, int) and isinstance(b, int) else tvm.tirx.floormod(_expr(a), _expr(b))


def largest(a, b):
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tvm.tirx.max(_expr(a), _expr(b))


def smallest(a, b):
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tvm.tirx.min(_expr(a), _expr(b))


_COMBINE = (
    (sympy.Add, lambda a, b: a + b),
    (sympy.Mul, lambda a, b: a * b),
    ((symbolic.FloorDiv, symbolic.CleanDiv), floor_div),
    ((symbolic.Mod, symbolic.PythonMod), floor_mod),
    ((symbolic.Max, sympy.Max), largest),
    ((symbolic.Min, sympy.Min), smallest),
)
