"""Eager calls whose functions are compiled together: those that do not wait for each other's results in one module.

A function that is compiled alone costs the passes of a module and a call of the linker. The calls themselves are unchanged:
they find their functions where they would have put them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import tvm

from sparse_ops.build import build, unchecked
from sparse_ops.eager import call
from sparse_ops.program import Function


class NotCompiled(Exception):
    """A job came to a function that is not there yet."""


Part = dict[str, Function]  # of a program, its `main`


def run_together(
    jobs: Mapping[str, Callable[[], Any]], functions: dict[tuple, Part] | None = None
) -> Iterator[tuple[str, Any]]:
    """Name and result of every job, as soon as it is there. A job that raises KeyError waits for another one's result, which
    its caller keeps, and is begun anew: jobs must not mind that. `functions`: of calls before this one, to be extended."""
    left, functions = dict(jobs), {} if functions is None else functions
    while left:
        wanted: dict[tuple, Callable[[], tvm.IRModule]] = {}
        before = len(left)
        with _looked_up(functions, wanted):
            for name, job in list(left.items()):
                try:
                    result = job()
                except (NotCompiled, KeyError):
                    continue
                del left[name]
                yield name, result
        if not wanted and len(left) == before:
            raise ValueError(f"jobs: expected results for them to go on with, given none for {', '.join(left)}")
        functions.update(_compiled(wanted))


@contextmanager
def _looked_up(functions: dict[tuple, Part], wanted: dict[tuple, Callable[[], tvm.IRModule]]) -> Iterator[None]:
    """Eager calls take their function from `functions`; those that are not there are noted in `wanted`."""

    def compiled(identity: tuple, make_module: Callable[[], tvm.IRModule], precision: str = "float32") -> Part:
        if identity not in functions:
            wanted.setdefault(identity, make_module)
            raise NotCompiled(identity)
        return functions[identity]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call, "compiled", compiled)
        yield


def _compiled(wanted: dict[tuple, Callable[[], tvm.IRModule]]) -> dict[tuple, Part]:
    """The functions of all modules, `main` of each, in one."""
    if not wanted:
        return {}
    names, functions = {}, {}
    for number, (identity, make_module) in enumerate(wanted.items()):
        names[identity] = name = f"main{number}"
        functions[tvm.ir.GlobalVar(name)] = make_module()["main"].with_attr("global_symbol", name)
    with unchecked():
        program = build(tvm.IRModule(functions), lift_params=True)
    return {identity: {"main": program[name]} for identity, name in names.items()}
