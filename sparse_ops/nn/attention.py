"""Attention within batch elements, whose rows lie one after the other, or within windows: no padding, no masks."""

from math import sqrt

from tvm import relax
from tvm.relax.frontend import nn

from tir_kernels.spec.serialize import BITS

from .. import op
from ..op.index import triple
from ..op.numbers import MOST_SIZE, check_int
from ..op.serialize import check_curve
from ..op.windows import LEAST_SHIFT, window_axes
from .carrier import Partition, Sites, SymbolicSparseTensor, check_sparse, emit
from .norm import MultiHeadRMSNorm
from .rows import Linear, Rowwise, check_count, feats_of


def attention(
    q: nn.Tensor,
    k: nn.Tensor,
    v: nn.Tensor,
    q_offsets: nn.Tensor,
    k_offsets: nn.Tensor,
    scale: float | None = None,
    q_order: nn.Tensor | None = None,
    k_order: nn.Tensor | None = None,
) -> nn.Tensor:
    """softmax(q k^T * scale) v for every head and segment b, rows offsets[b] to offsets[b + 1], or so many of an order.

    q [Nq, H, D]; k, v [Nk, H, D]; q_offsets, k_offsets int32 [B + 1]; scale 1 / sqrt(D) unless given; q_order int32 [Nq],
    k_order int32 [Mk] as in a `Partition`, see `op.attention`. Returns [Nq, H, D].
    """
    scale = 1 / sqrt(q.shape[2]) if scale is None else scale
    args = (argument._expr for argument in (q, k, v, q_offsets, k_offsets))
    orders = (None if order is None else order._expr for order in (q_order, k_order))
    return emit(op.attention(*args, scale, *orders), "attention")


class SelfAttention(nn.Module):
    """Every row attends to the rows of its batch element.

    Parameters: to_qkv and to_out as in `Linear`, q first; with `qk_rms_norm` q_rms_norm.gamma and k_rms_norm.gamma
    [heads, D]. ValueError if the heads do not divide the channels.
    """

    def __init__(self, channels: int, num_heads: int, qk_rms_norm: bool = False, dtype: str = "float32"):
        channels, num_heads = _check_heads("SelfAttention", channels, num_heads)
        self.head_dim, self.num_heads = channels // num_heads, num_heads
        self.to_qkv = Linear(channels, 3 * channels, dtype=dtype)
        self.to_out = Linear(channels, channels, dtype=dtype)
        self.q_rms_norm = MultiHeadRMSNorm(self.head_dim, num_heads) if qk_rms_norm else None
        self.k_rms_norm = MultiHeadRMSNorm(self.head_dim, num_heads) if qk_rms_norm else None

    def forward(
        self, x: SymbolicSparseTensor, residual: SymbolicSparseTensor | None = None, gate: nn.Tensor | None = None
    ) -> SymbolicSparseTensor:
        """x [N, C] -> [N, C]; the last layer multiplies by `gate` float32 [B, C] and adds `residual`."""
        check_sparse("SelfAttention", x)
        q, k, v = (heads_of(part.feats, self.num_heads) for part in self.to_qkv.parts(x, 3))
        if self.q_rms_norm is not None:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        return self.to_out(x.with_feats(rows_of(self.attend(x.sites, q, k, v))), residual, gate=gate)

    def attend(self, sites: Sites, q: nn.Tensor, k: nn.Tensor, v: nn.Tensor) -> nn.Tensor:
        """Three of [N, H, D] -> [N, H, D]."""
        offsets = sites.offsets()
        return attention(q, k, v, offsets, offsets)


class WindowedSelfAttention(SelfAttention):
    """Every row attends to the rows of its window of voxels, see `op.window_partition`.

    Parameters as in `SelfAttention`. Layers of equal `window` and `shift` share a partition. ValueError if the heads do
    not divide the channels, or for a wrong window or shift.
    """

    def __init__(self, channels: int, num_heads: int, window, shift=0, qk_rms_norm: bool = False, dtype: str = "float32"):
        super().__init__(channels, num_heads, qk_rms_norm, dtype)
        self.window, self.shift = window_axes("nn.WindowedSelfAttention", window, shift)

    def attend(self, sites: Sites, q: nn.Tensor, k: nn.Tensor, v: nn.Tensor) -> nn.Tensor:
        return _within(sites.windows(self.window, self.shift), q, k, v)


class SerializedSelfAttention(SelfAttention):
    """Every row attends to `window` rows around it along a space-filling curve, see `op.serialized_partition`.

    Parameters as in `SelfAttention`. Layers of equal options share a partition. ValueError if the heads do not divide the
    channels, or for a wrong option.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window: int,
        shift_sequence: int = 0,
        shift=0,
        mode: str = "z_order",
        qk_rms_norm: bool = False,
        dtype: str = "float32",
        bits: int = BITS,
    ):
        super().__init__(channels, num_heads, qk_rms_norm, dtype)
        name = "nn.SerializedSelfAttention"
        window = check_int(name, "window", window, 1)
        shift_sequence = check_int(name, "shift_sequence", shift_sequence, 0)
        check_curve(name, mode, bits)
        self.partition = window, shift_sequence, triple(name, "shift", shift, LEAST_SHIFT, MOST_SIZE), mode, bits

    def attend(self, sites: Sites, q: nn.Tensor, k: nn.Tensor, v: nn.Tensor) -> nn.Tensor:
        return _within(sites.serialized(*self.partition), q, k, v)


class CrossAttention(nn.Module):
    """Every row attends to the context rows of its batch element.

    Parameters: to_q, to_kv (k first) and to_out as in `Linear`. What depends on the context alone comes from `context`, so
    that a sampler need compute it only once. ValueError if the heads do not divide the channels.
    """

    def __init__(self, channels: int, context_channels: int, num_heads: int, dtype: str = "float32"):
        (context_channels,) = check_count("CrossAttention", context_channels=context_channels)
        channels, num_heads = _check_heads("CrossAttention", channels, num_heads)
        self.head_dim, self.num_heads = channels // num_heads, num_heads
        self.to_q = Linear(channels, channels, dtype=dtype)
        self.to_kv = Linear(context_channels, 2 * channels, dtype=dtype)
        self.to_out = Linear(channels, channels, dtype=dtype)

    def context(self, tokens: nn.Tensor) -> tuple[nn.Tensor, nn.Tensor]:
        """Keys and values of context rows [L, context_channels]: two of [L, H, D]."""
        k, v = self.to_kv.parts(feats_of(tokens, "tokens"), 2)
        return heads_of(k, self.num_heads), heads_of(v, self.num_heads)

    def forward(
        self,
        x: SymbolicSparseTensor,
        context: tuple[nn.Tensor, nn.Tensor],
        context_offsets: nn.Tensor,
        residual: SymbolicSparseTensor | None = None,
    ) -> SymbolicSparseTensor:
        """x [N, C]; context as `context` returns it; context_offsets int32 [B + 1] -> [N, C]; `residual` is added last."""
        check_sparse("CrossAttention", x)
        q = heads_of(self.to_q(x).feats, self.num_heads)
        h = attention(q, *context, x.sites.offsets(), context_offsets)
        return self.to_out(x.with_feats(rows_of(h)), residual)


def _within(partition: Partition, q: nn.Tensor, k: nn.Tensor, v: nn.Tensor) -> nn.Tensor:
    """Attention within the windows of a partition."""
    q_order, q_offsets, k_order, k_offsets = partition.fields
    return attention(q, k, v, q_offsets, k_offsets, q_order=q_order, k_order=k_order)


def heads_of(x: Rowwise, heads: int) -> nn.Tensor:
    """[N, H * D] -> [N, H, D], the same memory."""
    rows, channels = feats_of(x).shape
    return emit(relax.op.reshape(feats_of(x)._expr, (rows, heads, channels // heads)))


def rows_of(x: nn.Tensor) -> nn.Tensor:
    """[N, H, D] -> [N, H * D], the same memory."""
    rows, heads, depth = x.shape
    return emit(relax.op.reshape(x._expr, (rows, heads * depth)))


def _check_heads(owner: str, channels: int, heads: int) -> tuple[int, int]:
    """Channels and heads as ints, whose quotient is the depth of a head."""
    channels, heads = check_count(owner, channels=channels, num_heads=heads)
    if channels % heads:
        raise ValueError(f"{owner}: num_heads: expected a divisor of {channels} channels, given {heads}")
    return channels, heads
