"""Blocks that the sparse networks of SAM-3D-Objects are made of, as graph modules with the parameter names of checkpoints.

`record(name, tensor)`, where a block takes it, is told inner results; by default nobody listens and nothing is computed for it.
"""

from collections.abc import Callable

import numpy as np
from tvm import relax

from sam3d_tvm.models.sparse_convolutions import Convolution
from sparse_ops.nn import (
    Activation,
    CrossAttention,
    Downsample,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    SelfAttention,
    SubMConv3d,
    SymbolicSparseTensor,
    Tensor,
    Upsample,
)
from sparse_ops.nn.carrier import emit

Record = Callable[[str, Tensor], None]

FREQUENCIES = 128  # of a timestep, each as a cosine and a sine
LONGEST_PERIOD = 10000.0


def ignore(name: str, tensor: Tensor) -> None:
    """A `record` that keeps nothing."""


class TimestepEmbedder(Module):
    """Times -> [B, channels]: 128 cosines, then 128 sines, through linear, SiLU, linear (`mlp.0` and `mlp.2`)."""

    def __init__(self, channels: int):
        self.mlp = ModuleList([Linear(2 * FREQUENCIES, channels), Activation("silu"), Linear(channels, channels)])

    def forward(self, t: Tensor) -> Tensor:
        """t float32 [B], already multiplied by the time scale -> float32 [B, channels]."""
        angles = relax.op.multiply(relax.op.reshape(t._expr, (t.shape[0], 1)), relax.const(timestep_frequencies()[None]))
        angles = emit(angles)._expr
        waves = emit(relax.op.concat([emit(relax.op.cos(angles))._expr, emit(relax.op.sin(angles))._expr], axis=1))
        return self.mlp[2](self.mlp[0](waves, activation="silu"))


def timestep_frequencies() -> np.ndarray:
    """float32 [128]: exp(-ln(10000) i / 128), rounded where upstream rounds. At t = 1000 every bit of these is seen."""
    steps = np.float32(-np.log(LONGEST_PERIOD)) * np.arange(FREQUENCIES, dtype=np.float32) / np.float32(FREQUENCIES)
    return np.exp(steps.astype(np.float64)).astype(np.float32)


def absolute_positions(coords: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding of x, y, z: int32 [N, 4] -> float32 [N, channels].

    For each axis the sines of channels // 6 frequencies, then the cosines; zeros fill up the end.
    """
    count, rows = channels // 6, coords.shape[0]
    xyz = emit(relax.op.strided_slice(coords._expr, [1], [1], [4]))._expr
    xyz = emit(relax.op.reshape(emit(relax.op.astype(xyz, "float32"))._expr, (rows, 3, 1)))._expr
    angles = emit(relax.op.multiply(xyz, relax.const(position_frequencies(count)[None, None])))._expr
    waves = emit(relax.op.concat([emit(relax.op.sin(angles))._expr, emit(relax.op.cos(angles))._expr], axis=2))
    parts = [emit(relax.op.reshape(waves._expr, (rows, 6 * count)))._expr]
    if channels > 6 * count:
        parts.append(emit(relax.op.zeros((rows, channels - 6 * count), "float32"))._expr)
    return emit(relax.op.concat(parts, axis=1), "positions")


def position_frequencies(count: int) -> np.ndarray:
    """float32 [count]: 10000^(-i / count), rounded where upstream rounds."""
    exponents = np.arange(count, dtype=np.float32) / np.float32(max(count, 1))
    return np.float32(1) / np.power(LONGEST_PERIOD, exponents.astype(np.float64)).astype(np.float32)


class ConvModule(Module):
    """A submanifold convolution under the name `conv`, as checkpoints nest it."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int = 3, convolution: Convolution = SubMConv3d):
        self.conv = convolution(channels, out_channels, kernel_size)

    def forward(self, x: SymbolicSparseTensor, residual: Tensor | None = None) -> SymbolicSparseTensor:
        """x [N, channels], residual [N, out_channels] -> [N, out_channels]."""
        return self.conv(x, residual)

    def of_upsampled(self, x: SymbolicSparseTensor) -> SymbolicSparseTensor:
        """x [M, channels] on coarse sites -> [N, out_channels], as if x had been repeated on the finer sites before."""
        return self.conv.of_upsampled(x, x.sites.finer)


class SparseResBlock3d(Module):
    """Norm, SiLU, convolution, modulated norm, SiLU, convolution, and a skip; optionally between two resolutions.

    With `downsample` the input is first averaged over 2^3 voxels (the mean divides by count + 1), with `upsample` it is first
    repeated on the finer sites that downsampling came from; the skip takes the result too. The embedding of a batch element
    gives scale, then shift, of the second norm. `convolution` makes the convolutions; with `parent_convolution`, which needs
    native ones, that after upsampling multiplies the rows of the parents.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        downsample: bool = False,
        upsample: bool = False,
        convolution: Convolution = SubMConv3d,
        parent_convolution: bool = False,
    ):
        if downsample and upsample:
            raise ValueError("SparseResBlock3d: upsample: expected False where downsample is True, given True")
        out_channels = channels if out_channels is None else out_channels
        self.norm1 = LayerNorm(channels)
        self.norm2 = LayerNorm(out_channels, affine=False)
        self.conv1 = ConvModule(channels, out_channels, convolution=convolution)
        self.conv2 = ConvModule(out_channels, out_channels, convolution=convolution)
        self.emb_layers = ModuleList([Activation("silu"), Linear(emb_channels, 2 * out_channels)])
        self.skip_connection = Linear(channels, out_channels) if out_channels != channels else None
        self.downsample = Downsample(2, "mean", count_bias=1) if downsample else None
        self.upsample = Upsample() if upsample else None
        self.parent_convolution = upsample and parent_convolution

    def modulation(self, emb: Tensor) -> list[Tensor]:
        """emb [B, emb_channels] *after* its SiLU, which blocks share -> scale and shift, each [B, out_channels]."""
        return self.emb_layers[1].parts(emb, 2)

    def forward(self, x: SymbolicSparseTensor, emb: Tensor, record: Record = ignore) -> SymbolicSparseTensor:
        """x [N, channels], emb [B, emb_channels] *after* its SiLU -> [M, out_channels]."""
        return self.modulated(x, *self.modulation(emb), record)

    def modulated(self, x: SymbolicSparseTensor, scale: Tensor, shift: Tensor, record: Record = ignore) -> SymbolicSparseTensor:
        """x [N, channels]; scale, shift as `modulation` returns them -> [M, out_channels]."""
        if self.downsample is not None:
            x = self.downsample(x)
            record("pooled", x.feats)
        skip = x if self.skip_connection is None else self.skip_connection(x)
        h = self.norm1(x, activation="silu")
        if self.upsample is not None:
            # What works on single rows comes before the rows are repeated: the same bits for an eighth of the work.
            skip = self.upsample(skip)
            h = h if self.parent_convolution else self.upsample(h)
        record("skip", skip.feats)
        h = self.conv1.of_upsampled(h) if self.parent_convolution else self.conv1(h)
        record("conv1", h.feats)
        h = self.norm2(h, scale, shift, activation="silu")
        record("hidden", h.feats)
        return self.conv2(h, skip.feats)


class FeedForward(Module):
    """Linear, GELU (tanh), linear: `mlp.0` and `mlp.2`."""

    def __init__(self, channels: int, hidden: int):
        self.mlp = ModuleList([Linear(channels, hidden), Activation("gelu_tanh"), Linear(hidden, channels)])

    def forward(
        self, x: SymbolicSparseTensor, residual: SymbolicSparseTensor, gate: Tensor | None = None
    ) -> SymbolicSparseTensor:
        """x, residual [N, C]; gate float32 [B, C] scales the result before the residual is added -> [N, C]."""
        return self.mlp[2](self.mlp[0](x, activation="gelu_tanh"), residual, gate=gate)


class ModulatedCrossBlock(Module):
    """Transformer block: self attention, cross attention and a feed-forward layer, each with a norm before and a skip.

    The embedding of a batch element gives shift, scale and gate of the attention, then those of the feed-forward layer;
    cross attention has none of them, but an affine norm. The three parts are called one after the other.
    """

    def __init__(self, channels: int, context_channels: int, num_heads: int, hidden: int, qk_rms_norm: bool):
        self.norm1 = LayerNorm(channels, affine=False)
        self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels, affine=False)
        self.self_attn = SelfAttention(channels, num_heads, qk_rms_norm)
        self.cross_attn = CrossAttention(channels, context_channels, num_heads)
        self.mlp = FeedForward(channels, hidden)
        self.adaLN_modulation = ModuleList([Activation("silu"), Linear(channels, 6 * channels)])

    def modulation(self, emb: Tensor) -> list[Tensor]:
        """emb [B, C] *after* its SiLU -> the modulations of both parts that have them, each three of [B, C]."""
        return self.adaLN_modulation[1].parts(emb, 6)

    def attend(self, x: SymbolicSparseTensor, shift: Tensor, scale: Tensor, gate: Tensor) -> SymbolicSparseTensor:
        """Self attention, x [N, C] -> [N, C]."""
        return self.self_attn(self.norm1(x, scale, shift), x, gate)

    def cross(self, x: SymbolicSparseTensor, context: tuple[Tensor, Tensor], context_offsets: Tensor) -> SymbolicSparseTensor:
        """Cross attention, x [N, C]; context: keys and values [L, H, D]; context_offsets int32 [B + 1] -> [N, C]."""
        return self.cross_attn(self.norm2(x), context, context_offsets, residual=x)

    def feed(self, x: SymbolicSparseTensor, shift: Tensor, scale: Tensor, gate: Tensor) -> SymbolicSparseTensor:
        """The feed-forward layer, x [N, C] -> [N, C]."""
        return self.mlp(self.norm3(x, scale, shift), x, gate)
