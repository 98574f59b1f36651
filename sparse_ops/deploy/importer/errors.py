"""What cannot be imported, in words that lead on: the op, the line of the model, and what to use instead."""

import linecache
import re
import traceback
from pathlib import Path

import torch
from torch import fx

RANDOM = "random numbers as an input of the model"
CUSTOM = "a converter for it, which port_component takes as `converters`"
FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)')
PACKAGES = tuple(map(str, (Path(torch.__file__).resolve().parent, Path(__file__).resolve().parents[2])))  # torch and ours

# What to use instead of an op, by the beginning of its name; the longest counts.
HINTS: dict[str, str] = {
    "aten::_cdist": "(a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1), and a square root",
    "aten::bernoulli": RANDOM,
    "aten::convolution": "a convolution of 1, 2 or 3 dimensions that is not transposed, or a transposed one of 1 or 2",
    "aten::grid_sampler_3d": "torch.ops.sparse_ops.trilinear and interpolate, on voxels",
    "aten::_linalg": "numpy, before or after the component",
    "aten::linalg": "numpy, before or after the component",
    "aten::mode": "torch.bincount and argmax",
    "aten::multinomial": RANDOM,
    "aten::nonzero_static": "mask.nonzero()",
    "aten::normal": RANDOM,
    "aten::rand": RANDOM,
    "aten::scatter.reduce": "scatter_reduce",
    "aten::segment_reduce": "scatter_reduce or index_add, with the segment of each row as index",
    "aten::unique_dim": "columns of integers, torch.unique over dim=0 of at most four",
    "spconv::": "sparse_ops.torch.convert(model), which puts our layers in place of spconv's",
    "torch_cluster::": CUSTOM,
    "torch_scatter::": "torch's scatter_reduce and index_add, with the segment of each row as index",
    "torchsparse::": "the layers of sparse_ops.torch.spconv",
    "python::": "numbers that decide no branch: torch.where on tensors, torch.sym_max and torch.sym_min of sizes",
}
# What to do where torch.export itself refuses, by words in its message.
EXPORT_HINTS: dict[str, str] = {
    "Constraints violated": "a Dim with the bounds that torch suggests; what a model reads of fewer rows is still checked",
    "data-dependent": (
        "keep a number that the data decide a number: no if, while, range or list over it; torch.where on tensors, "
        "torch.sym_max and torch.sym_min of sizes, x[:n] for split, and int, float, len, max and min in the module itself"
    ),
    "which is not a known type": "tensors, in tuples, lists or dicts",
    "Tensor-likes are not close": "no tensors changed from outside while the model runs",
    "mutat": "no changes of the model's own tensors in its forward",
}


def refused(error: Exception) -> ValueError:
    """What torch.export raised, with the line of the model and a hint before its words."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_ours(frame.filename)]
    last = frames[-1] if frames and "port_component" not in (frames[-1].line or "") else None
    line = f" at {last.filename}:{last.lineno}: {last.line}" if last else ""
    hint = next((hint for words, hint in EXPORT_HINTS.items() if words in str(error)), "")
    hint = f"; instead: {hint}" if hint else ""
    return ValueError(f"torch.export refuses it{line}{hint}\n{type(error).__name__}: {error}")


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
    return CUSTOM if not op.startswith(("aten::", "prims::")) else ""


def explained(node: fx.Node, op: str, reason: str) -> ValueError:
    hint = hint_for(op)
    return ValueError(f"{op}{line_of(node.meta.get('stack_trace'))}: {reason}" + (f"; instead: {hint}" if hint else ""))
