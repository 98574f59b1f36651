"""Normalisation: by row, by head, by batch element, and by channel with statistics that are known."""

from tvm.relax.frontend import nn

from .. import op
from ..op.channel_affine import affine_of_batch_norm
from ..op.numbers import check_positive
from .carrier import SymbolicSparseTensor, check_sparse, emit
from .rows import Rowwise, check_count, expr_of, feats_of, like


class LayerNorm(nn.Module):
    """`activation((norm(x) * weight + bias) * (1 + scale[b]) + shift[b])`, every row by itself; sums are float32.

    Parameters, with `affine`: weight and bias, float32 [channels].
    """

    def __init__(self, channels: int, affine: bool = True, eps: float = 1e-6):
        (channels,) = check_count("LayerNorm", channels=channels)
        self.eps = eps
        self.weight = nn.Parameter((channels,), "float32") if affine else None
        self.bias = nn.Parameter((channels,), "float32") if affine else None

    def forward(
        self,
        x: Rowwise,
        scale: nn.Tensor | None = None,
        shift: nn.Tensor | None = None,
        activation: str = "none",
        batch_index: nn.Tensor | None = None,
    ) -> Rowwise:
        """x [N, C]; scale, shift float32 [B, C], which a row takes by `batch_index` int32 [N] -> [N, C], dtype of x.

        A sparse tensor brings the batch index of its sites.
        """
        if batch_index is None and isinstance(x, SymbolicSparseTensor) and (scale is not None or shift is not None):
            batch_index = x.sites.batch_index()
        optional = (self.weight, self.bias, scale, shift)
        call = op.layer_norm(
            expr_of(x),
            *(None if argument is None else argument._expr for argument in optional),
            eps=self.eps,
            activation=activation,
            batch_index=None if batch_index is None else batch_index._expr,
        )
        return like(x, emit(call, "layer_norm"))


class GroupNorm(nn.Module):
    """Normalisation over the voxels of a batch element and the channels of a group; sums are float32.

    Parameters: weight and bias, float32 [channels]. ValueError if the groups do not divide the channels.
    """

    def __init__(self, num_groups: int, channels: int, eps: float = 1e-5):
        num_groups, channels = check_count("GroupNorm", num_groups=num_groups, channels=channels)
        if channels % num_groups:
            raise ValueError(f"GroupNorm: num_groups: expected a divisor of {channels} channels, given {num_groups}")
        self.num_groups = num_groups
        self.eps = eps
        self.weight = nn.Parameter((channels,), "float32")
        self.bias = nn.Parameter((channels,), "float32")

    def forward(self, x: SymbolicSparseTensor, activation: str = "none") -> SymbolicSparseTensor:
        """x [N, C] -> [N, C], dtype of x."""
        check_sparse("GroupNorm", x)
        call = op.group_norm(
            expr_of(x),
            x.sites.offsets()._expr,
            self.weight._expr,
            self.bias._expr,
            self.num_groups,
            eps=self.eps,
            activation=activation,
        )
        return like(x, emit(call, "group_norm"))


class BatchNorm(nn.Module):
    """Inference of `torch.nn.BatchNorm1d`: `activation((x - running_mean) / sqrt(running_var + eps) * weight + bias)`.

    Parameters by torch's names, all float32 [num_features]: weight and bias, with `affine`; running_mean, running_var. Directly
    behind a convolution or a linear layer it becomes part of their weights, see `transform.FoldBatchNorm`. `momentum` is
    what training needs. ValueError without `track_running_stats`: there would be nothing known to normalise by.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ):
        (num_features,) = check_count("BatchNorm", num_features=num_features)
        if not track_running_stats:
            raise ValueError(
                "BatchNorm: track_running_stats: expected True, as inference normalises by running statistics, "
                f"given {track_running_stats!r}"
            )
        self.num_features = num_features
        self.eps = check_positive("BatchNorm", "eps", eps)
        self.weight = nn.Parameter((num_features,), "float32") if affine else None
        self.bias = nn.Parameter((num_features,), "float32") if affine else None
        self.running_mean = nn.Parameter((num_features,), "float32")
        self.running_var = nn.Parameter((num_features,), "float32")

    def forward(self, x: Rowwise, activation: str = "none") -> Rowwise:
        """x [N, C] -> [N, C], dtype of x."""
        if feats_of(x).shape[1] != self.num_features:
            raise ValueError(f"BatchNorm: x: expected {self.num_features} channels, given {feats_of(x).shape[1]}")
        parameters = (self.running_mean, self.running_var, self.weight, self.bias)
        affine = affine_of_batch_norm(*(None if p is None else p._expr for p in parameters), self.eps)
        scale, shift = (emit(expr, name)._expr for expr, name in zip(affine, ("scale", "shift"), strict=True))
        return like(x, emit(op.channel_affine(expr_of(x), scale, shift, activation), "batch_norm"))


class MultiHeadRMSNorm(nn.Module):
    """`x / max(|x|, 1e-12) * gamma * sqrt(D)` over each attention head. Parameter: gamma, float32 [heads, D]."""

    def __init__(self, head_dim: int, heads: int):
        head_dim, heads = check_count("MultiHeadRMSNorm", head_dim=head_dim, heads=heads)
        self.gamma = nn.Parameter((heads, head_dim), "float32")

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        """x [N, H, D] -> [N, H, D], dtype of x."""
        return emit(op.rms_norm_heads(x._expr, self.gamma._expr), "rms_norm")
