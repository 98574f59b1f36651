"""Normalisation: by row, by head, and by batch element."""

from tvm.relax.frontend import nn

from .. import op
from .carrier import SymbolicSparseTensor, check_sparse, emit
from .rows import Rowwise, check_count, expr_of, like


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


class MultiHeadRMSNorm(nn.Module):
    """`x / max(|x|, 1e-12) * gamma * sqrt(D)` over each attention head. Parameter: gamma, float32 [heads, D]."""

    def __init__(self, head_dim: int, heads: int):
        head_dim, heads = check_count("MultiHeadRMSNorm", head_dim=head_dim, heads=heads)
        self.gamma = nn.Parameter((heads, head_dim), "float32")

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        """x [N, H, D] -> [N, H, D], dtype of x."""
        return emit(op.rms_norm_heads(x._expr, self.gamma._expr), "rms_norm")
