"""What cannot be imported, in words that lead on: the op, the line of the model, and what to use instead."""

import linecache
import re
from pathlib import Path

import torch
from torch import fx

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)')
PACKAGES = tuple(str(Path(file).resolve().parent) for file in (torch.__file__, Path(__file__).parents[1]))  # torch and ours

# What to use instead of an op, by its name or the beginning of it.
HINTS: dict[str, str] = {}


def line_of(stack: str | None, short: bool = False) -> str:
    """` at file:line: code` for the innermost frame of a stack that is the user's; empty if there is none.

    `short`: the file without its folder, for what is compiled.
    """
    for found in reversed(list(FRAME.finditer(stack or ""))):
        file, line = found["file"], int(found["line"])
        if not is_ours(file):
            code = linecache.getline(file, line).strip()
            return f" at {Path(file).name if short else file}:{line}" + (f": {code}" if code else "")
    return ""


def is_ours(file: str) -> bool:
    """Whether a file is torch's, or one of this package."""
    return file.startswith("<") or str(Path(file).resolve()).startswith(PACKAGES)


def hint_for(op: str) -> str:
    """What to use instead of an op; empty if nothing is known."""
    for name in sorted(HINTS, key=len, reverse=True):
        if op.startswith(name):
            return HINTS[name]
    return ""


def explained(node: fx.Node, op: str, reason: str) -> ValueError:
    hint = hint_for(op)
    return ValueError(f"{op}{line_of(node.meta.get('stack_trace'))}: {reason}" + (f"; instead: {hint}" if hint else ""))
