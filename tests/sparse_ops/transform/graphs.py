"""Small Relax modules for the tests of passes, and what is in them."""

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from sparse_ops.op.signature import GIVEN
from sparse_ops.transform.rewrite import CLEAN
from tests.sparse_ops.walk import module_of


def graph(call: Callable[..., relax.Expr], *shapes: tuple, dtype: str = "float32") -> tvm.IRModule:
    """A module whose `main` returns `call` of tensors of these shapes; a named dimension is symbolic."""
    return CLEAN(module_of(call, [np.zeros(0, dtype)] * len(shapes), shapes))


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """float32 arrays of these shapes."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def ops(mod: tvm.IRModule) -> list[str]:
    """The names of what `main` calls, in order: "add" for `R.add`, of kernels the names without a number."""
    names = []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call):
                name = value.op.name.removeprefix("relax.")
                names.append(value.args[0].name_hint.rstrip("0123456789") if name == "call_tir" else name)
    return names


def calls(mod: tvm.IRModule, op: str) -> list[relax.Call]:
    """The calls of one op in `main`."""
    values = (binding.value for block in mod["main"].body.blocks for binding in block.bindings)
    return [value for value in values if isinstance(value, relax.Call) and value.op.name.removeprefix("relax.") == op]


def arguments(call: relax.Call) -> set[str]:
    """The names of the optional arguments that a call of an op of ours has."""
    return {str(name) for name in call.attrs[GIVEN]}
