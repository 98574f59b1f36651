"""Which ops have a converter here: `python -m sparse_ops.deploy.importer.coverage` prints the table of docs/bridge.md."""

import sys
from collections.abc import Mapping

from .own_ops import NAMESPACE
from .registry import PYTHON, Converter

# What the converters of a file are for, in the order of the table.
THEMES = {
    "own_ops": "our ops",
    "rows": "rows selected",
    "assign": "parts assigned",
    "scatter": "rows grouped by an index",
    "unique": "distinct rows and numbers",
    "order": "order and running sums",
    "reduce": "reductions",
    "layout": "cut, joined, reshaped",
    "create": "new tensors",
    "arithmetic": "arithmetic",
    "numbers": "numbers from the data",
    "dense": "dense layers",
    "padding": "padding",
}


def table(converters: Mapping[str, Converter]) -> str:
    """Ops by theme. What is not in it goes to TVM's importer."""
    ops: dict[str, list[str]] = {theme: [] for theme in THEMES}
    for name, function in converters.items():
        module = getattr(function, "func", function).__module__.rpartition(".")[2]
        ops[module].append(_shown(name))
    rows = [f"| {THEMES[theme]} | {', '.join(f'`{name}`' for name in sorted(set(names)))} |" for theme, names in ops.items()]
    return "\n".join(["| what | ops |", "|---|---|", *rows])


def _shown(name: str) -> str:
    """torch's own without their library, and overloads as one."""
    library, _, op = name.partition("::")
    op = op.partition(".")[0]
    return op if library in ("aten", PYTHON, NAMESPACE) else f"{library}::{op}"


if __name__ == "__main__":
    from . import CONVERTERS

    sys.stdout.write(table(CONVERTERS) + "\n")
