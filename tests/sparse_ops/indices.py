"""Which indices of coordinates calls build: for tests of who shares one."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sparse_ops.program import Program, _Machines

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
    # Of eager calls all that are there: functions outlive a cache that another test emptied.
    kept = [program._machines for program in programs] or [found for found in gc.get_objects() if type(found) is _Machines]
    before = [machines.observer for machines in kept]
    try:
        for machines in kept:
            machines.watch(calls.note)
        yield calls
    finally:
        for machines, observer in zip(kept, before, strict=True):
            machines.watch(observer)
