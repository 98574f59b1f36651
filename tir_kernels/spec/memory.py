"""Whether some tensors fit into memory, asked before they are allocated; see `tir_kernels.memory`."""

from dataclasses import dataclass
from typing import ClassVar

from . import Spec

MOST_SIZED, MOST_NUMBERS = 2, 5  # arguments of `GrantMemory`


@dataclass(frozen=True)
class Size:
    """A dimension that is argument `place` among the numbers, or, with an `axis`, one of tensor `place` among the arguments."""

    place: int
    axis: int | None = None


@dataclass(frozen=True)
class GrantMemory(Spec):
    """(tensors of `sized`, int64 `numbers`, granted int64 [1]); ValueError where what is asked for does not fit into memory.

    `what`: who allocates, for the message. `tensors`: dtype and dimensions, ints or `Size`, of all that will be allocated.
    `sized`: dtype and rank of the arguments that are tensors; `numbers`: how many are numbers. What is allocated after
    `granted` is known is granted.
    """

    family: ClassVar[str] = "grant_memory"
    what: str
    tensors: tuple[tuple[str, tuple[int | Size, ...]], ...]
    sized: tuple[tuple[str, int], ...] = ()
    numbers: int = 0
