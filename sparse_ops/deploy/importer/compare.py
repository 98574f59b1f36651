"""What a compiled function computes against torch: once for the example, once for another number of rows.

How far floats may be apart is the law of rounding: 4 * sqrt(depth) * epsilon * scale, where `depth` is how many rounded
additions lie behind a value (the longest chain of sums through the graph), `scale` the largest magnitude of the output.

Integers round each factor of a product to steps of a 127th of its row's largest value. Of a rotated row, which is close to
normal, that is about 4.5 standard deviations, and a step rounds by 4.5 / 127 / sqrt(12) = 1% of one: two factors are off by
1.4%, or with 7 bits in one of them by 2.3%, and errors of layers grow by the square root of their number. What is allowed,
`SHARES`, is half as much again, in the L2 norm relative to what the output varies by.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import fx

from .registry import name_of

SHARES = {"int8": 0.02, "int7": 0.035}
EPSILONS = {"tf32": 2.0**-10}  # of what is no dtype
IS_ROUNDING = " is rounding"  # ends what is said of values that are too far apart
C = 4.0  # see above: a random walk of roundings, the worst of very many values, in two computations
PRODUCTS = {"linear": 1, "mm": 1, "bmm": 1, "addmm": 2, "baddbmm": 2, "matmul": 1, "convolution": 1}  # place of the weight
SUMS = ("sum", "mean", "var", "std", "prod", "norm")  # of which each result has an equal share of the values
BY_INDEX = ("cumsum", "softmax", "index_add", "index_put", "scatter", "bincount", "pool")  # one may have all rows


class TooCoarse(ValueError):
    """Integers are further from torch than their rounding explains where no channel stands out."""


def depth_of(program: torch.export.ExportedProgram) -> float:
    """How many rounded additions lie behind a value: over all paths through the graph, the largest sum of fan-ins."""
    depths: dict[fx.Node, float] = {}
    for node in program.graph.nodes:
        before = max((depths[source] for source in node.all_input_nodes), default=0.0)
        depths[node] = before + (fan_in(node) if node.op == "call_function" else 0.0)
    return max(depths.values(), default=1.0)


def layers_of(program: torch.export.ExportedProgram) -> int:
    """How many products with weights lie behind a value, at most."""
    counts: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        is_product = node.op == "call_function" and name_of(node.target).partition("::")[2].partition(".")[0] in PRODUCTS
        counts[node] = max((counts[source] for source in node.all_input_nodes), default=0) + is_product
    return max(counts.values(), default=0)


def fan_in(node: fx.Node) -> float:
    """How many values an op sums up for each of its results; 1 for what sums nothing."""
    op = name_of(node.target).partition("::")[2].partition(".")[0]
    shapes = [_sizes(source) for source in node.all_input_nodes]
    if op in PRODUCTS and len(shapes) > PRODUCTS[op]:
        weight, result = shapes[PRODUCTS[op]], _sizes(node)
        if op == "convolution":
            return math.prod(weight[1:])
        return weight[-1] if op == "linear" else math.prod(weight) / max(result[-1] if result else 1, 1)
    if op in ("sparse_conv", "upsampled_conv"):
        return math.prod(shapes[1][1:])
    if "attention" in op:
        return sum(max(shape, default=1) for shape in shapes[:2])
    rows = max((max(shape, default=1) for shape in shapes), default=1)
    if any(word in op for word in BY_INDEX):
        return rows
    if any(word in op for word in SUMS):
        return max((math.prod(shape) for shape in shapes), default=1) / max(math.prod(_sizes(node)), 1)
    return 1.0


def _sizes(node: fx.Node) -> list[int]:
    """Of the first tensor that a node makes; a size that only the data tell counts as a thousand."""
    tensor = next((leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)), None)
    return [] if tensor is None else [_hint(size) for size in tensor.shape]


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    value = size.node.hint if size.node.has_hint() else None
    return 1000 if value is None else int(value)


def shortened(program: torch.export.ExportedProgram, leaves: list[torch.Tensor]) -> list[torch.Tensor] | None:
    """The inputs cut along their dynamic dimensions, equal ones alike; None where there are none, or nothing to cut."""
    nodes = [node for node in program.graph.find_nodes(op="placeholder") if node.name in program.graph_signature.user_inputs]
    symbols: dict[Any, int] = {}
    for node, leaf in zip(nodes, leaves, strict=True):
        for size, length in zip(node.meta["val"].shape, leaf.shape, strict=True):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                symbols.setdefault(size.node.expr, length)
    fewer = {symbol: max(length // 2, 1) for symbol, length in symbols.items()}
    for symbol, limits in program.range_constraints.items():
        if symbol in fewer and int(limits.lower) > 2:  # what torch assumes of any size is no bound of the user's
            fewer[symbol] = max(fewer[symbol], int(limits.lower))
    if all(fewer[symbol] >= symbols[symbol] for symbol in symbols):
        return None
    found = []
    for node, leaf in zip(nodes, leaves, strict=True):
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                length = int(size.node.expr.xreplace(fewer))
                leaf = leaf.narrow(axis, 0, min(length, leaf.shape[axis]))
        found.append(leaf.contiguous())
    return found


def compare(
    what: str,
    compiled: Callable[..., Any],
    module: Callable[..., Any],
    program: torch.export.ExportedProgram,
    arguments: Mapping[str, Any],
    outputs: list[str],
    precision: str,
) -> None:
    """ValueError, which `what` begins, for the first output that differs from torch's, and by how much; of integers, if it is
    finite where torch's is, `TooCoarse`.

    `compiled` and `module` take `arguments` by name; `outputs`: names of the tensors that both return. Says so in a warning
    where the model takes no other number of rows.
    """
    leaves, structure = pytree.tree_flatten(dict(arguments))
    depths = depth_of(program), layers_of(program)
    _compare_once(what, compiled, module, dict(arguments), outputs, precision, *depths)
    fewer = shortened(program, leaves)
    if fewer is None:
        return
    shorter = structure.unflatten(fewer)
    try:
        _run(module, shorter)
    except Exception as error:  # whatever a model raises
        words = str(error).strip().splitlines()[:1]
        warnings.warn(
            f"{what}: compared with torch on the example only; cut to {[list(leaf.shape) for leaf in fewer]} the model raises "
            f"{type(error).__name__}: {''.join(words)}",
            stacklevel=3,
        )
        return
    _compare_once(what, compiled, module, shorter, outputs, precision, *depths)


def _run(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    with torch.no_grad():
        return function(**pytree.tree_map(torch.clone, dict(arguments)))  # it may write into what it is given


def _compare_once(
    what: str, compiled, module, arguments: Mapping[str, Any], outputs: list[str], precision: str, depth: float, layers: int
) -> None:
    shapes = ", ".join(str(list(leaf.shape)) for leaf in pytree.tree_leaves(dict(arguments)))
    what = f"{what}: with inputs {shapes}"
    expected = pytree.tree_leaves(_run(module, arguments))
    try:
        given = pytree.tree_leaves(_run(compiled, arguments))
    except Exception as error:  # what torch computes, the component should too
        raise ValueError(f"{what}: torch computes a result, the component raises {type(error).__name__}: {error}") from error
    if len(given) != len(expected):
        raise ValueError(f"{what}: expected {len(expected)} outputs, as torch returns, given {len(given)}")
    for name, mine, theirs in zip(outputs, given, expected, strict=True):
        if problem := difference(mine, theirs, precision, depth, layers):
            kind = TooCoarse if problem.endswith(IS_ROUNDING) and precision in SHARES else ValueError
            raise kind(f"{what}: {name}: differs from torch's: {problem}; check=False leaves this comparison out")


def difference(mine: torch.Tensor, theirs: torch.Tensor, precision: str, depth: float, layers: int = 1) -> str:
    """What is wrong of a tensor; empty if nothing is. `layers`: as of `layers_of`."""
    if tuple(mine.shape) != tuple(theirs.shape) or mine.dtype != theirs.dtype:
        return f"{mine.dtype} {list(mine.shape)} instead of {theirs.dtype} {list(theirs.shape)}"
    if not theirs.is_floating_point():
        wrong = int((mine != theirs).sum())
        return f"{wrong} of {theirs.numel()} values" if wrong else ""
    a, b = (tensor.detach().double().numpy() for tensor in (mine, theirs))
    finite = np.isfinite(b)
    special = int(((~finite | ~np.isfinite(a)) & ~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
    if special:
        return f"{special} of {b.size} values NaN or infinite in one only"
    if precision in SHARES:
        return _share(np.where(finite, a, 0), np.where(finite, b, 0), SHARES[precision] * math.sqrt(max(layers, 1)))
    kinds = {str(theirs.dtype).removeprefix("torch."), "float32", precision}
    epsilon = max(EPSILONS.get(kind) or float(ml_dtypes.finfo(kind).eps) for kind in kinds)  # sums are float32 at best
    scale = np.abs(b[finite]).max(initial=0.0) or 1.0
    allowed = C * math.sqrt(max(depth, 1.0)) * epsilon * scale
    error = np.abs(a[finite] - b[finite]).max(initial=0.0)
    return f"by {error:.3g}, at most {allowed:.3g} is rounding" if error > allowed else ""


def _share(a: np.ndarray, b: np.ndarray, allowed: float) -> str:
    """What is wrong of `a` where it should be `b`, up to a share of what the rows of `b` vary by."""
    rows = b.reshape(-1, b.shape[-1]) if b.ndim else b.reshape(1, 1)
    size = np.linalg.norm(rows - rows.mean(0)) if len(rows) > 1 else 0.0
    share = np.linalg.norm(a - b) / (size or np.linalg.norm(b) or 1.0)
    return f"by {share:.2%} (relative L2), at most {allowed:.2%}{IS_ROUNDING}" if share > allowed else ""
