"""Gradients of our ops of torch, so that a model on them can be trained.

A gradient is computed by the same ops: that of a convolution's features is the convolution through the inverse map, that of a
sum over rows the selection of rows, and the other way round. So it has the same bits at any number of threads. Sums are
float32; a gradient has the dtype of what it belongs to.

`GRADIENTS` has a formula for each op that has gradients, of features, weights and biases alone. Anything else is refused when
a gradient is asked for, and so is a gradient of a gradient: nothing is silently zero.

Of the activations that an op takes in, ReLU has a gradient. That of a maximum goes to every row that is equal to it, as in
spconv; a 0 that `max_from_zero` put there and no row is equal to has none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tir_kernels.dispatch import map_layout

from ..op.signature import MAP_DTYPES
from .callback import pairs_by_tap
from .kept import KeptWithMemory
from .ops import LIBRARY, NAMESPACE, TORCH_OPS, TorchOp

OPS = getattr(torch.ops, NAMESPACE)
MAP = tuple(MAP_DTYPES)
OUT = "out"  # the result, beside the names of the arguments


@dataclass(frozen=True)
class Call:
    """What is left of a call when its gradient is asked for.

    `tensors`: arguments and the result by name, those that were kept. `shapes`: of all arguments that were given. `options`:
    all that is no tensor. `needs`: the arguments whose gradient is asked for.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    shapes: Mapping[str, torch.Size]
    options: Mapping[str, Any]
    needs: frozenset[str]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def map(self) -> list[torch.Tensor]:
        return [self[name] for name in MAP]

    def refuse(self, reason: str) -> None:
        raise ValueError(f"{NAMESPACE}.{self.name}: {reason}")


@dataclass(frozen=True)
class Gradient:
    """of(call, gradient of the result) -> gradients by name, at least those that the call needs.

    `keeps`: for a tensor, the arguments whose gradients read it; a tensor that is not named is not kept, but its shape is.
    """

    of: Callable[[Call, torch.Tensor], dict[str, torch.Tensor]]
    keeps: Mapping[str, tuple[str, ...]]


# --- what formulas share ---------------------------------------------------------------------------------------------------


def _before_activation(call: Call, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of what an activation was applied to."""
    activation = call.options["activation"]
    if activation == "none":
        return gradient
    if activation != "relu":
        call.refuse(
            f"activation: expected 'none' or 'relu' where a gradient is asked for, given {activation!r}; "
            f"apply torch.nn.functional.{activation.partition('_')[0]} to the result instead, or compute under torch.no_grad()"
        )
    return torch.where(call[OUT] > 0, gradient, torch.zeros((), dtype=gradient.dtype))


def _sites(rows: int) -> torch.Tensor:
    """int32 [rows, 4], of which an op reads the number of rows alone."""
    return torch.empty(rows, 4, dtype=torch.int32)


def _column_sum(x: torch.Tensor) -> torch.Tensor:
    """float32 [C]: the sum of the rows of [N, C], in their order."""
    return OPS.segment_pool(x.float(), torch.zeros(len(x), dtype=torch.int32), _sites(1), "sum")[0]


_inverses = KeptWithMemory()


def _inverse(kernel_map: list[torch.Tensor], rows: int) -> list[torch.Tensor]:
    """The inverse of a map from `rows` rows: made once for a map, which many layers share, as long as its memory is there."""
    fields = [(t.untyped_storage()._cdata, t._version, t.storage_offset(), *t.shape) for t in kernel_map]
    return _inverses.of(kernel_map[0], (rows, *fields), lambda: list(OPS.inverse_map(*kernel_map, _sites(rows))))


def _exchanged(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[Cout, kx, ky, kz, Cin / groups] -> [Cin, kx, ky, kz, Cout / groups]: every tap's matrices transposed."""
    cout, *kernel, depth = weight.shape
    by_group = weight.reshape(groups, cout // groups, *kernel, depth).permute(0, 5, 2, 3, 4, 1)
    return by_group.reshape(groups * depth, *kernel, cout // groups)


def _convolved_back(gradient: torch.Tensor, weight: torch.Tensor, kernel_map, rows: int, groups: int) -> torch.Tensor:
    """The gradient [rows, Cin] of the features of a convolution."""
    return OPS.sparse_conv(gradient, _exchanged(weight, groups), *_inverse(kernel_map, rows), _sites(rows), groups=groups)


def _weight_gradient(call: Call, x: torch.Tensor, gradient: torch.Tensor, groups: int) -> torch.Tensor:
    kernel = list(call.shapes["weight"][1:4])
    return OPS.sparse_conv_weight_gradient(x, gradient, *call.map, kernel, groups)


def _divided(call: Call, gradient: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """float32: the gradient of each row of a mean; `counts` [M] rows are in it."""
    return gradient.float() / (counts + call.options["count_bias"]).clamp(min=1).float()[:, None]


# --- formulas --------------------------------------------------------------------------------------------------------------


def _sparse_conv(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    groups = call.options["groups"]
    gradient, found = _before_activation(call, gradient), {}
    if "x" in call.needs:
        found["x"] = _convolved_back(gradient, call["weight"], call.map, call.shapes["x"][0], groups)
    if "weight" in call.needs:
        found["weight"] = _weight_gradient(call, call["x"], gradient, groups)
    if "bias" in call.needs:
        found["bias"] = _column_sum(gradient)
    return found | {"residual": gradient}


def _upsampled_conv(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """As of `sparse_conv(gather_rows(x, parent), ...)`."""
    gradient, found = _before_activation(call, gradient), {}
    if "x" in call.needs:
        fine = _convolved_back(gradient, call["weight"], call.map, len(gradient), 1)
        found["x"] = OPS.segment_pool(fine, call["parent"], _sites(call.shapes["x"][0]), "sum")
    if "weight" in call.needs:
        found["weight"] = _weight_gradient(call, OPS.gather_rows(call["x"], call["parent"]), gradient, 1)
    if "bias" in call.needs:
        found["bias"] = _column_sum(gradient)
    return found | {"residual": gradient}


def _linear(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    if "gate" in call.shapes:
        call.refuse("gate: expected none where a gradient is asked for, given one; multiply and add in torch instead")
    gradient, found = _before_activation(call, gradient), {}
    if "x" in call.needs:
        found["x"] = OPS.linear(gradient.to(call["weight"].dtype), call["weight"].t())
    if "weight" in call.needs:
        x = call["x"]
        itself = map(torch.from_numpy, map_layout().identity(len(x)))
        weight = OPS.sparse_conv_weight_gradient(x, gradient.to(x.dtype), *itself, [1, 1, 1])
        found["weight"] = weight.view(call.shapes["weight"])
    if "bias" in call.needs:
        found["bias"] = _column_sum(gradient)
    return found | {"residual": gradient}


def _pool(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, mode = call.shapes["x"][0], call.options["mode"]
    if mode == "max":
        return {"x": _to_maxima(call, gradient)}
    if mode == "mean":
        counts = OPS.pool(torch.ones(rows, 1), *call.map, _sites(len(gradient)), "sum")[:, 0]
        gradient = _divided(call, gradient, counts)
    return {"x": OPS.pool(gradient, *_inverse(call.map, rows), _sites(rows), "sum")}


def _to_maxima(call: Call, gradient: torch.Tensor) -> torch.Tensor:
    """Each row's part of the gradients of those maxima that it is equal to: summed in float32, tap by tap."""
    x, out, gradient = call["x"], call[OUT], gradient.float()
    found = torch.zeros(x.shape)
    block_rows = map_layout().block_rows(len(out))
    for source, target in zip(*pairs_by_tap(*call.map[:3], block_rows), strict=True):  # at a tap, a row is in one pair
        found[source] += torch.where(x[source] == out[target], gradient[target], 0.0)
    return found


def _segment_pool(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    index, mode = call["index"], call.options["mode"]
    if mode == "mean":
        counts = torch.bincount(index[index >= 0], minlength=len(gradient))
        gradient = _divided(call, gradient, counts)
    of_rows = OPS.gather_rows(gradient, index)
    if mode == "max":
        of_rows = torch.where(call["x"] == OPS.gather_rows(call[OUT], index), of_rows, 0.0)
    if mode == "first":
        row, to = torch.arange(len(index)), index.long()
        first = torch.full((len(gradient) + 1,), len(index)).scatter_reduce(0, to + 1, row, "amin")
        of_rows = torch.where((first[to + 1] == row)[:, None], of_rows, 0.0)
    return {"x": of_rows}


def _gather_rows(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"x": OPS.segment_pool(gradient, call["index"], _sites(call.shapes["x"][0]), "sum")}


def _to_dense(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"x": OPS.from_dense(gradient, call["coords"], call.options["channels_last"])}


def _from_dense(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    batch, *axes = call.shapes["dense"]
    last = call.options["channels_last"]
    if 0 in call.shapes["dense"]:
        return {"dense": gradient.new_zeros(call.shapes["dense"])}
    return {"dense": OPS.to_dense(gradient, call["coords"], batch, axes[:3] if last else axes[1:], last)}


def _interpolate(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    index, found = call["index"], {}
    points, terms = index.shape
    flat = index.reshape(-1)
    if "x" in call.needs:
        parts = (call["weight"][:, :, None] * gradient.float()[:, None]).flatten(0, 1)  # [P * terms, C]
        found["x"] = OPS.segment_pool(parts, flat, _sites(call.shapes["x"][0]), "sum")
    if "weight" in call.needs:
        rows = OPS.gather_rows(call["x"], flat).float().view(points, terms, gradient.shape[1])
        found["weight"] = (rows * gradient.float()[:, None]).sum(2)
    return found


def _channel_affine(call: Call, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    gradient, found = _before_activation(call, gradient).float(), {}
    if "x" in call.needs:
        found["x"] = gradient * call["scale"]
    if "scale" in call.needs:
        found["scale"] = _column_sum(gradient * call["x"].float())
    if "shift" in call.needs:
        found["shift"] = _column_sum(gradient)
    return found


# Arguments whose gradient reads a kept tensor.
ALL = ("x", "weight", "bias", "residual", "scale", "shift")
OF_MAP = dict.fromkeys(MAP, ("x", "weight"))
PRODUCT = {"x": ("weight",), "weight": ("x",), OUT: ALL}

GRADIENTS: dict[str, Gradient] = {
    "sparse_conv": Gradient(_sparse_conv, PRODUCT | OF_MAP),
    "upsampled_conv": Gradient(_upsampled_conv, PRODUCT | OF_MAP | {"parent": ("x", "weight")}),
    "linear": Gradient(_linear, PRODUCT),
    "pool": Gradient(_pool, OF_MAP | {"x": ("x",), OUT: ("x",)}),
    "segment_pool": Gradient(_segment_pool, {"x": ("x",), "index": ("x",), OUT: ("x",)}),
    "gather_rows": Gradient(_gather_rows, {"index": ("x",)}),
    "to_dense": Gradient(_to_dense, {"coords": ("x",)}),
    "from_dense": Gradient(_from_dense, {"coords": ("dense",)}),
    "interpolate": Gradient(_interpolate, {"x": ("weight",), "weight": ("x",), "index": ("x", "weight")}),
    "channel_affine": Gradient(_channel_affine, {"x": ("scale",), "scale": ("x",), OUT: ALL}),
}

# What to write in place of an op that has none.
INSTEAD = {
    "attention": "torch.nn.functional.scaled_dot_product_attention",
    "group_norm": "torch.nn.functional.group_norm on the rows of each batch element",
    "layer_norm": "torch.nn.functional.layer_norm",
    "rms_norm_heads": "torch.nn.functional.rms_norm",
    "trilinear": "weights computed in torch, with the index of this op",
}


# --- registered --------------------------------------------------------------------------------------------------------------


class _Once(torch.autograd.Function):
    """A gradient as it is, of which no gradient can be asked: of `anchors`, all that it was computed from."""

    @staticmethod
    def forward(ctx, name: str, found: torch.Tensor, *anchors: torch.Tensor) -> torch.Tensor:
        ctx.name = name
        return found.view_as(found)

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError(
            f"{NAMESPACE}.{ctx.name}: gradient: expected to be asked for once, given a gradient of a gradient; "
            "what is computed through create_graph=True must not depend on this op"
        )


def _reads_result(options: Mapping[str, Any]) -> bool:
    return options.get("activation") == "relu" or options.get("mode") == "max"


def _kept(formula: Gradient, given: Mapping[str, Any], needs: frozenset[str]) -> list[str]:
    """Names of the tensors that a gradient will read."""
    reads_result = _reads_result(given)
    needed = {OUT: reads_result}
    if "mode" in given:
        needed["x"] = reads_result  # of a pool
    return [name for name, readers in formula.keeps.items() if needs & set(readers) and needed.get(name, True)]


def _register(made: TorchOp, formula: Gradient | None) -> None:
    """Autograd of one op: by its formula, or a refusal."""

    def setup_context(ctx, inputs, output, keyword_only_inputs=None):
        if formula is None:
            return
        given = dict(zip(made.names, inputs, strict=True)) | (keyword_only_inputs or {})
        needs = frozenset(name for name, needed in zip(made.names, ctx.needs_input_grad, strict=False) if needed)
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        options = {name: value for name, value in given.items() if not isinstance(value, torch.Tensor)}
        kept = _kept(formula, options, needs)
        ctx.save_for_backward(*(output if name == OUT else tensors[name] for name in kept))
        ctx.call = made.name, kept, {name: tensor.shape for name, tensor in tensors.items()}, options, needs
        ctx.dtypes = {name: tensors[name].dtype for name in needs}

    def backward(ctx, *gradients):
        if formula is None:
            instead = INSTEAD.get(made.name)
            raise ValueError(
                f"{NAMESPACE}.{made.name}: expected inputs that require no gradient, as this op has none; "
                f"compute under torch.no_grad(){f', or use {instead}' if instead else ''}"
            )
        name, kept, *rest = ctx.call
        call = Call(name, dict(zip(kept, ctx.saved_tensors, strict=True)), *rest)
        if missing := call.needs - set(TORCH_OPS[name].signature.by_name):
            call.refuse(f"{', '.join(sorted(missing))}: has no gradient")
        with torch.no_grad():
            found = formula.of(call, gradients[0])
        if torch.is_grad_enabled():
            anchors = gradients[0], *ctx.saved_tensors
            found = {key: _Once.apply(name, value, *anchors) for key, value in found.items() if key in call.needs}
        return tuple(found[key].to(ctx.dtypes[key]) if key in call.needs else None for key in made.names)

    torch.library.register_autograd(f"{NAMESPACE}::{made.name}", backward, setup_context=setup_context, lib=LIBRARY)


for _made in TORCH_OPS.values():
    _register(_made, GRADIENTS.get(_made.name))
