"""Eager face, batch norm with running statistics: a layer, and what makes it part of the convolution before it.

`folded` is asked by containers: there a convolution, a batch norm behind it (ours, or one of torch that does not train) and an
activation behind both run as one convolution with other weights, made again when an array of either has changed.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np

from ..op.numbers import as_int, check_positive, shown
from ..op.signature import FLOATS
from . import functional
from .arrays import TORCH, as_kind, as_tensor, dtype_of, kind_of
from .checksum import checksum
from .layers import _Convolution
from .module import Entry, SparseModule
from .tensor import SparseTensor

VECTORS = ("running_mean", "running_var", "weight", "bias")  # of a batch norm, ours and torch's


class BatchNorm1d(SparseModule):
    """Inference of `torch.nn.BatchNorm1d`: `(x - running_mean) / sqrt(running_var + eps) * weight + bias` by channel.

    Takes a SparseTensor, or an array float32, bfloat16 or float16 [N, C]; computes in float32. Its arrays, float32
    [num_features], have torch's names; `num_batches_tracked` of a state is accepted and not kept. `momentum` is accepted and
    ignored. In a `SparseSequential` it becomes part of the convolution before it.

    Raises ValueError without `track_running_stats`, as there would be nothing known to normalise by, and for other channels.
    """

    ignored = ("num_batches_tracked",)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ):
        super().__init__()
        if as_int(num_features) is None or as_int(num_features) < 1:
            raise ValueError(f"num_features: expected a positive int, given {shown(num_features)}")
        if not track_running_stats:
            raise ValueError(
                "track_running_stats: expected True, as inference normalises by running statistics, "
                f"given {track_running_stats!r}"
            )
        self.num_features = as_int(num_features)
        self.eps = check_positive("BatchNorm1d", "eps", eps)
        ones, zeros = (np.full(self.num_features, value, "float32") for value in (1, 0))
        self.weight, self.bias = (ones, zeros) if affine else (None, None)
        self.running_mean, self.running_var = zeros.copy(), ones.copy()

    def entries(self) -> dict[str, Entry]:
        entry = Entry((self.num_features,), ("float32",))
        return {name: entry for name in ("weight", "bias", "running_mean", "running_var") if getattr(self, name) is not None}

    def train(self, mode: bool = True) -> "BatchNorm1d":
        """This layer; ValueError if `mode`, as statistics are not gathered here."""
        if mode:
            raise ValueError("mode: expected False, as there is no training here, given True: train torch.nn.BatchNorm1d")
        return self

    def forward(self, x):
        feats = x.feats if isinstance(x, SparseTensor) else x
        if len(getattr(feats, "shape", ())) == 2 and feats.shape[1] != self.num_features:
            raise ValueError(f"input: expected {self.num_features} channels, given {feats.shape[1]}")
        tensor = as_tensor(feats, "input", FLOATS, (None, self.num_features))
        vectors = (getattr(self, name) for name in VECTORS)
        out = as_kind(functional.batch_norm(tensor, *vectors, eps=self.eps), kind_of(feats))
        return x.with_result(out, x.coordinates) if isinstance(x, SparseTensor) else out

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_features}, eps={self.eps})"


class Folded:
    """A convolution with batch norm and activation behind it as one layer, `layer()`."""

    def __init__(self, convolution: _Convolution, norm, activation: str):
        self.parts = convolution, norm, activation
        self._made: tuple[list, dict, _Convolution] | None = None  # what it was made of, and the layer

    def layer(self) -> _Convolution:
        """The layer for what both hold now."""
        convolution, norm, activation = self.parts
        vectors = {name: _detached(getattr(norm, name)) for name in VECTORS}
        held = [
            _checksum("weight", convolution.weight, FLOATS, convolution.weight_shape),
            *(_checksum(name, array, ("float32",), (convolution.out_channels,)) for name, array in vectors.items()),
            _checksum("bias", convolution.bias, ("float32",), (convolution.out_channels,)),
            norm.eps,
        ]
        more = {name: value for name, value in vars(convolution).items() if name not in ("weight", "bias", "_kept")}
        made = self._made
        if made is None or made[0] != held or made[1].keys() != more.keys() or any(made[1][n] is not more[n] for n in more):
            affine = functional.affine_of_batch_norm(*vectors.values(), norm.eps)
            # Another one, as threads may be using the one before; what is written meanwhile is seen at the next call.
            self._made = made = held, more, convolution.with_affine(*affine, activation)
        return made[2]


def folded(
    kept: dict[int, Folded], modules: Sequence, place: int, x, activation_of: Callable[[object], str | None]
) -> tuple[object, int]:
    """What to apply to `x` for the module at a place, and of how many modules it does the work.

    `kept`: what was made for places before; `activation_of` names the activation that a module is, if it is one.
    """
    first, *behind = modules[place : place + 3]
    if not (behind and _is_plain_convolution(first) and isinstance(x, SparseTensor) and _folds(behind[0], first, x)):
        return first, 1
    activation = activation_of(behind[1]) if behind[1:] else None
    found = kept.get(place)
    if (
        found is None
        or found.parts[0] is not first
        or found.parts[1] is not behind[0]
        or found.parts[2] != (activation or "none")
    ):
        found = kept[place] = Folded(first, behind[0], activation or "none")
    return found.layer(), 2 + (activation is not None)


def _folds(norm, convolution: _Convolution, x: SparseTensor) -> bool:
    """Whether a module is a batch norm that does nothing but what its arrays say; others are applied as they are."""
    torch = sys.modules.get("torch")
    if type(norm) is BatchNorm1d:
        if not runs_as(norm, BatchNorm1d):
            return False
    else:
        base = None if torch is None else torch.nn.BatchNorm1d
        if base is None or not isinstance(norm, base) or not runs_as(norm, base) or has_hooks(norm):
            return False
        if norm.training or norm.running_mean is None:
            return False
        arrays = [getattr(norm, name) for name in VECTORS if getattr(norm, name) is not None]
        if any(str(array.dtype) != "torch.float32" or array.device.type != "cpu" for array in arrays):
            return False
        records = torch.is_grad_enabled() and any(array.requires_grad for array in arrays)
        if records and kind_of(x.feats) in TORCH:
            return False
    return norm.num_features == convolution.out_channels


def _is_plain_convolution(module) -> bool:
    """Whether a module is a convolution of ours, or of a class that changes nothing about what it computes."""
    if not isinstance(module, _Convolution):
        return False
    return runs_as(module, next(base for base in type(module).__mro__ if base.__module__ == _Convolution.__module__))


def runs_as(module, base: type) -> bool:
    """Whether a call of a module runs the code of `base`: neither its class nor it alone has a `forward` of its own."""
    names = ("__call__", "forward")
    return "forward" not in vars(module) and all(getattr(type(module), name) is getattr(base, name) for name in names)


def has_hooks(module) -> bool:
    """Whether a module of torch calls functions of the user's beside its own, given to it or to all modules."""
    names = ("forward_hooks", "forward_pre_hooks")
    shared = sys.modules["torch.nn.modules.module"]
    return any(getattr(module, f"_{name}", None) or getattr(shared, f"_global_{name}", None) for name in names)


def _detached(array):
    return array.detach() if kind_of(array) in TORCH else array


def _checksum(name: str, array, dtypes: tuple[str, ...], shape: tuple[int, ...]):
    """What stands for the elements of an array; None for none. ValueError for another dtype or shape."""
    if array is None:
        return None
    tensor = as_tensor(array, name, dtypes, shape)  # refuses what is no array and has no dtype
    return dtype_of(array), checksum(tensor, dtype_of(array))


BatchNorm = SparseBatchNorm = BatchNorm1d

__all__ = ["BatchNorm", "BatchNorm1d", "SparseBatchNorm"]
