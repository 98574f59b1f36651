"""Batch norm in evaluation, and a ReLU behind it, in one pass of our kernel where a container calls them one after the other.

Torch would go over the features twice, and on threads of its own, see `sparse_ops.torch.threads`.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from ..ops import CALLS


def norm_and_activation(modules: Sequence[nn.Module], features: torch.Tensor) -> tuple[int, torch.Tensor] | None:
    """(how many of the first modules, what they make of features [N, C]); None where they have to be called themselves.

    That is so for other modules, with gradients, under autocast, while torch.export traces, and where a hook wants to see what
    goes in or comes out.
    """
    norm = modules[0]
    if type(norm) is not nn.BatchNorm1d or norm.training or norm.running_mean is None or _is_watched(norm):
        return None
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    if features.dtype != torch.float32 or norm.running_mean.dtype != torch.float32 or features.shape[1] != norm.num_features:
        return None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    zero = scale.new_zeros(()) if norm.bias is None else norm.bias
    shift = torch.addcmul(zero, norm.running_mean, scale, value=-1)
    relu = len(modules) > 1 and type(modules[1]) is nn.ReLU and not _is_watched(modules[1])
    return 1 + relu, CALLS["channel_affine"](features, scale, shift, "relu" if relu else "none")


def _is_watched(module: nn.Module) -> bool:
    """Whether a hook is called with what goes into the module or comes out."""
    return bool(module._forward_hooks or module._forward_pre_hooks or _has_any_global_hook())
