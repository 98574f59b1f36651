"""Which indices of coordinates calls build: for tests of who shares one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from sparse_ops.eager import cache
from sparse_ops.program import Program

MAPS = ("submanifold_map", "probe_map")  # kernels that look up rows in an index


class Calls:
    """`sets`: the coordinates of every index that was built; `maps`: how many maps were."""

    def __init__(self):
        self.sets: list[bytes] = []
        self.maps = 0

    def note(self, name: str, arguments: tuple) -> None:
        if name.startswith("build_index"):
            self.sets.append(np.from_dlpack(arguments[0]).tobytes())
        self.maps += name.startswith(MAPS)


@contextmanager
def indices_built(*programs: Program) -> Iterator[Calls]:
    """What the programs, or eager calls whose functions are compiled already, build inside."""
    calls = Calls()
    programs = programs or [kept for kept in cache._compiled.values() if isinstance(kept, Program)]
    with ExitStack() as stack:
        for program in programs:
            stack.enter_context(program.observed(calls.note))
        yield calls
