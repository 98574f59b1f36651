"""`subm_conv3d`: submanifold, strided and inverse convolutions, each on the same input.

`config["ops"]` lists them; parameters are `state.<op>.conv.weight / bias`. Outputs are `out.<op>`, for strided ones with
`_coords`, `_sorted`, `_sorted_coords` and, on the input of one batch element, `_single`, `_single_coords`. The order of the
rows is ours where one batch element was recorded; with more, upstream groups them by an unstable sort, and the recorded
order is followed.
"""

import math
import re
from functools import partial

import numpy as np

import sparse_ops
from tests.golden.case import Case, Tensors
from tests.golden.together import run_together

GEOMETRY = re.compile(r"strided_k(\d+)s(\d+)p(\d+)$")


def run(tensors: Tensors, config: dict) -> Tensors:
    jobs = {}
    for suffix in ("", "_single"):
        if f"in.x{suffix}" not in tensors:
            continue
        x = sparse_ops.SparseTensor(tensors[f"in.x{suffix}"], tensors[f"in.coords{suffix}"])
        for op in config["ops"]:
            if (name := f"out.{op['name']}{suffix}") in tensors:
                jobs[name] = partial(_run_one, op, x, suffix, tensors)
    return {name: value for _, found in run_together(jobs) for name, value in found.items()}


def _run_one(op: dict, x, suffix: str, tensors: Tensors) -> Tensors:
    name = op["name"]
    kernel = op["kernel"]
    if op["cls"] == "SparseInverseConv3d":
        source = name.removeprefix("inverse_")
        x = _strided(source, tensors)(x)
        layer = sparse_ops.SparseInverseConv3d(op["in_channels"], op["out_channels"], kernel, source)
    elif op["type"] == "SubMConv3d":
        layer = sparse_ops.SubMConv3d(op["in_channels"], op["out_channels"], kernel)
    else:
        layer = _strided(name, tensors)
    y = _with_state(layer, name, tensors)(x)
    key = f"out.{name}{suffix}"
    if f"{key}_coords" not in tensors:
        return {key: y.feats}
    if x.batch_size == 1:
        result = {key: y.feats, f"{key}_coords": y.coords}
    else:
        place = {tuple(c): row for row, c in enumerate(y.coords.tolist())}
        order = [place.get(tuple(c), 0) for c in tensors[f"{key}_coords"].tolist()]
        result = {key: y.feats[order], f"{key}_coords": y.coords[order]}
    order = np.lexsort(y.coords.T[::-1])
    return result | {f"{key}_sorted": y.feats[order], f"{key}_sorted_coords": y.coords[order]}


def _strided(name: str, tensors: Tensors):
    """The strided layer whose name tells its geometry, with its parameters."""
    match = GEOMETRY.match(name)
    if match is None:
        raise ValueError(f"config.ops: expected a name like strided_k3s2p1, given {name!r}")
    cout, *_, cin = tensors[f"state.{name}.conv.weight"].shape
    layer = sparse_ops.SparseConv3d(cin, cout, *map(int, match.groups()), indice_key=name)
    return _with_state(layer, name, tensors)


def _with_state(layer, name: str, tensors: Tensors):
    prefix = f"state.{name}.conv."
    layer.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    return layer


def depth(name: str, tensors: Tensors, config: dict) -> float:
    """Products behind a value; an inverse convolution has those of its input too."""
    total = 0
    for op in config["ops"]:
        if name.startswith(f"out.{op['name']}") or name == f"out.inverse_{op['name']}":
            total += math.prod(tensors[f"state.{op['name']}.conv.weight"].shape[1:])
    return max(total, 1)


CASE = Case(run, depth)
