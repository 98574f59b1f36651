"""Whether some tensors fit into memory, asked before they are allocated; see `tir_kernels.memory`."""

from dataclasses import dataclass
from typing import ClassVar

from . import Spec

MOST_DIMENSIONS = 8  # of all tensors


@dataclass(frozen=True)
class GrantMemory(Spec):
    """(the dimensions of all tensors, each an int64, granted int64 [1]); ValueError where they do not fit into memory together.

    `what`: who allocates them, for the message. `tensors`: dtype and number of dimensions of each. What is allocated after
    `granted` is known is granted.
    """

    family: ClassVar[str] = "grant_memory"
    what: str
    tensors: tuple[tuple[str, int], ...]
