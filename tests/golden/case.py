"""What a golden case is."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import tvm

from sparse_ops.build import Program, build

Tensors = dict[str, np.ndarray]
FEW = (0, 1, 2, 17)  # rows that a network compiled for any number of them is tried at, beside all


precision: ContextVar[str] = ContextVar("precision", default="float32")  # of what cases compile


def compiled(mod: tvm.IRModule) -> Program:
    """A module for the target in scope, in the `precision` that is asked for, its parameters behind its inputs."""
    return build(mod, lift_params=True, precision=precision.get())


def _one(name: str, tensors: Tensors, config: dict) -> float:
    return 1.0


@dataclass(frozen=True)
class Case:
    """How one kind of golden file is computed again, whatever its sizes, seed and batch.

    `run(tensors, config)` returns an array for every `out.*` and `mid.*` name of `tensors`. It computes from `state.*`
    and `in.*`; it may look at the others for their names and, where an order of rows is not defined, for that order.

    `depth(name, tensors, config)` is the number of rounded additions behind the tensor `name`, see `tests.tolerance`.

    `scale(name, tensors, config)` is the size of the terms, or None for the largest magnitude of the tensor itself.

    `ways(tensors, config)` computes the same in other ways: of each what it is called, the arrays by name, and the tensors
    that stand for those of the file, which may be of other inputs.
    """

    run: Callable[[Tensors, dict], Tensors]
    depth: Callable[[str, Tensors, dict], float] = _one
    scale: Callable[[str, Tensors, dict], float | None] = lambda name, tensors, config: None
    ways: Callable[[Tensors, dict], Iterable[tuple[str, Tensors, Tensors]]] = lambda tensors, config: ()
