"""The structured-latent generator: the flow model that turns noise on active voxels into latents, from our Relax ops.

Two functions of one compiled module, which serves every number of voxels, batch elements and condition tokens:

- `prepare(coords, cond)` computes what does not change over the steps of a sampler: kernel maps and coordinates of every
  resolution, positional embedding, keys and values of the condition for every block, with it and without it;
- `velocity(x, t, sites, context)` is one call of the model.

Weights are not part of the module: they are packed for the CPU once, one at a time. Everything is computed in float32.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from zlib import crc32

import ml_dtypes
import numpy as np
import safetensors
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

from sam3d_tvm.components.blocks import (
    ModulatedCrossBlock,
    Record,
    SparseResBlock3d,
    TimestepEmbedder,
    absolute_positions,
    ignore,
)
from sam3d_tvm.sampler import Guidance, Step, sample_flow
from sparse_ops.build import build, pack_params
from sparse_ops.nn import KernelMap, LayerNorm, Linear, Module, ModuleList, Sites, SparseTensor, Tensor, concat
from sparse_ops.nn.carrier import cast_shape, dimension, emit

TIME_SCALE = 1000.0  # the model sees t in 0..1 times this
FACTOR = 2  # between two resolutions
FINAL_NORM_EPS = 1e-5
LEVEL_ARRAYS = 2  # coordinates and batch index, of a level's arrays in a plan


@dataclass(frozen=True)
class SlatConfig:
    """Sizes of the model, named as upstream names them.

    Around the transformer, which has `model_channels`, lie input and output blocks at the finer resolutions:
    `io_block_channels` has one entry for each, the finest first, and `patch_size` is 2 to their number. `num_heads`
    defaults to model_channels / num_head_channels. `resolution` bounds the coordinates. `use_fp16` is taken and has no
    effect, as everything is computed in float32.

    Raises ValueError for sizes that do not fit together, and for variants of the model that nobody has trained.
    """

    resolution: int
    in_channels: int
    model_channels: int
    cond_channels: int
    out_channels: int
    num_blocks: int
    num_heads: int | None = None
    num_head_channels: int = 64
    mlp_ratio: float = 4
    patch_size: int = 2
    num_io_res_blocks: int = 2
    io_block_channels: tuple[int, ...] = ()
    pe_mode: str = "ape"
    use_skip_connection: bool = True
    qk_rms_norm: bool = False
    qk_rms_norm_cross: bool = False
    force_zeros_cond: bool = True
    use_fp16: bool = False

    def __post_init__(self):
        object.__setattr__(self, "io_block_channels", tuple(self.io_block_channels or ()))
        for name in ("resolution", "in_channels", "model_channels", "cond_channels", "out_channels", "num_io_res_blocks"):
            _check_size(name, getattr(self, name), 1)
        _check_size("num_blocks", self.num_blocks, 0)
        _check_size("num_head_channels", self.num_head_channels, 1)
        if self.num_heads is not None:
            _check_size("num_heads", self.num_heads, 1)
        for i, channels in enumerate(self.io_block_channels):
            _check_size(f"io_block_channels[{i}]", channels, 1)
        if self.heads < 1 or self.model_channels % self.heads:
            raise ValueError(f"num_heads: expected a divisor of model_channels {self.model_channels}, given {self.heads}")
        if isinstance(self.mlp_ratio, bool) or not isinstance(self.mlp_ratio, (int, float)) or self.hidden < 1:
            raise ValueError(f"mlp_ratio: expected a positive number, given {self.mlp_ratio!r}")
        if self.patch_size != FACTOR**self.levels:
            raise ValueError(
                f"patch_size: expected {FACTOR**self.levels} for {self.levels} io_block_channels, given {self.patch_size!r}"
            )
        only = {"pe_mode": "ape", "qk_rms_norm_cross": False, "force_zeros_cond": True}
        for name, value in only.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}: expected {value!r}, given {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, values: Mapping) -> "SlatConfig":
        """From names and values; ValueError for a name that is unknown or missing, or a value that does not fit."""
        known = {field.name: field.default for field in fields(cls)}
        if extra := sorted(set(values) - set(known)):
            raise ValueError(f"config: expected names among {', '.join(known)}, given {', '.join(extra)} too")
        if missing := [name for name, default in known.items() if default is MISSING and name not in values]:
            raise ValueError(f"config: {', '.join(missing)} missing")
        return cls(**values)

    @property
    def heads(self) -> int:
        return self.num_heads or self.model_channels // self.num_head_channels

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers."""
        return int(self.model_channels * self.mlp_ratio)

    @property
    def levels(self) -> int:
        """Resolutions above that of the transformer."""
        return len(self.io_block_channels)


PRESETS = {
    # For tests: compiles and runs in seconds.
    "tiny": SlatConfig(
        resolution=64,
        in_channels=8,
        model_channels=48,
        cond_channels=24,
        out_channels=8,
        num_blocks=2,
        num_heads=2,
        io_block_channels=(16,),
        qk_rms_norm=True,
    ),
    # For the demo: the real structure at about a hundredth of its work.
    "small": SlatConfig(
        resolution=64,
        in_channels=8,
        model_channels=192,
        cond_channels=128,
        out_channels=8,
        num_blocks=4,
        num_heads=3,
        io_block_channels=(64,),
        qk_rms_norm=True,
    ),
    # The sizes of SAM-3D-Objects.
    "full": SlatConfig(
        resolution=64,
        in_channels=8,
        model_channels=1024,
        cond_channels=1024,
        out_channels=8,
        num_blocks=24,
        num_heads=16,
        io_block_channels=(128,),
        qk_rms_norm=True,
        use_fp16=True,
    ),
}


class SlatFlow(Module):
    """The model as a graph. Its parameters have the names of the upstream checkpoint."""

    def __init__(self, config: SlatConfig):
        self.config = config
        io, inner, count = config.io_block_channels, config.model_channels, config.num_io_res_blocks
        widths = (*io, inner)  # of every level
        skips = 2 if config.use_skip_connection else 1
        self.input_layer = Linear(config.in_channels, widths[0])
        self.t_embedder = TimestepEmbedder(inner)
        self.input_blocks = ModuleList([])
        for width, coarser in zip(widths[:-1], widths[1:], strict=True):
            for _ in range(count - 1):
                self.input_blocks.append(SparseResBlock3d(width, inner))
            self.input_blocks.append(SparseResBlock3d(width, inner, coarser, downsample=True))
        self.blocks = ModuleList(
            [
                ModulatedCrossBlock(inner, config.cond_channels, config.heads, config.hidden, config.qk_rms_norm)
                for _ in range(config.num_blocks)
            ]
        )
        self.out_blocks = ModuleList([])
        for width, coarser in zip(widths[-2::-1], widths[:0:-1], strict=True):
            self.out_blocks.append(SparseResBlock3d(skips * coarser, inner, width, upsample=True))
            for _ in range(count - 1):
                self.out_blocks.append(SparseResBlock3d(skips * width, inner, width))
        self.final_norm = LayerNorm(widths[0], affine=False, eps=FINAL_NORM_EPS)
        self.out_layer = Linear(widths[0], config.out_channels)

    def prepare(self, coords: Tensor, cond: Tensor):
        """coords int32 [N, 4] of B batch elements, each together and ascending; cond float32 [B, L, cond_channels].

        Returns (sites, context with the condition, context without it), of the types that `specs` writes.
        """
        batch, tokens, width = cond.shape
        sites = Sites(coords, batch)
        levels = []
        for level in range(self.config.levels + 1):
            arrays = [sites.coords, sites.batch_index()]
            if self.config.levels:
                arrays += sites.submanifold_map().fields
            if level < self.config.levels:
                sites, inverse = sites.downsampled(FACTOR)
                arrays.append(inverse)
            levels.append(tuple(arrays))
        positions = absolute_positions(sites.coords, self.config.model_channels)
        rows = emit(relax.op.reshape(cond._expr, (batch * tokens, width)))
        rows = cast_shape(rows._expr, (dimension("tokens"), width))
        given = [block.cross_attn.context(rows) for block in self.blocks]
        # Without a condition all tokens are zeros. Then all keys are equal, every query weighs them alike, and the mean of
        # equal values is their value: one zero token gives the same result, and its keys and values are the bias.
        zero = emit(relax.op.zeros((batch, width), "float32"))
        without = [block.cross_attn.context(zero) for block in self.blocks]
        return (
            (*levels, (sites.offsets(), positions)),
            (*given, _multiples(batch, tokens)),
            (*without, _multiples(batch, 1)),
        )

    def velocity(self, x: Tensor, t: Tensor, sites: tuple, context: tuple) -> Tensor:
        """x float32 [N, in_channels], t float32 [B] times 1000, `sites` and a context of `prepare` -> [N, out_channels]."""
        return self._velocity(x, t, sites, context, ignore)

    def _velocity(self, x: Tensor, t: Tensor, sites: tuple, context: tuple, record: Record) -> Tensor:
        *levels, (offsets, positions) = sites
        *keys_and_values, context_offsets = context
        h = SparseTensor(x, self._restored_sites(levels, offsets, t.shape[0]))
        emb = self.t_embedder(t)
        record("t_emb", emb)
        emb = silu(emb)
        h = self.input_layer(h)
        record("input_layer", h.feats)
        skips = []
        for i, block in enumerate(self.input_blocks):
            h = block(h, emb)
            record(f"input_block{i}", h.feats)
            skips.append(h)
        h = h.with_feats(emit(relax.op.add(h.feats._expr, positions._expr)))
        record("block0_in", h.feats)
        for i, (block, pair) in enumerate(zip(self.blocks, keys_and_values, strict=True)):
            h = block(h, emb, pair, context_offsets)
            record(f"block{i}", h.feats)
        for i, block in enumerate(self.out_blocks):
            skip = skips.pop()
            h = block(concat([h, skip]) if self.config.use_skip_connection else h, emb)
            record(f"out_block{i}", h.feats)
        h = self.final_norm(h)
        record("before_out_layer", h.feats)
        return self.out_layer(h).feats

    def _restored_sites(self, levels: Sequence[tuple], offsets: Tensor, batch) -> Sites:
        """The finest sites, with all that `prepare` found."""
        finest = None
        for arrays in levels:
            coords, batch_index, *rest = arrays
            sites = Sites(coords, batch) if finest is None else sites.put_downsampled(coords, inverse, FACTOR)
            finest = finest or sites
            sites.put_batch_index(batch_index)
            if self.config.levels:
                sites.put_submanifold_map(KernelMap(*rest[:4]))
            inverse = rest[-1] if rest else None
        sites.put_offsets(offsets)
        return finest

    def specs(self) -> dict:
        """What `export_tvm` is told of both functions."""
        config = self.config
        levels = []
        for level in range(config.levels + 1):
            rows = f"rows{level}"
            arrays = [spec.Tensor([rows, 4], "int32"), spec.Tensor([rows], "int32")]
            if config.levels:
                arrays += KernelMap.spec(f"map{level}")
            if level < config.levels:
                arrays.append(spec.Tensor([rows], "int32"))
            levels.append(tuple(arrays))
        shared = (spec.Tensor(["offsets"], "int32"), spec.Tensor([rows, config.model_channels], "float32"))
        heads = ["tokens", config.heads, config.model_channels // config.heads]
        pair = (spec.Tensor(heads, "float32"), spec.Tensor(heads, "float32"))
        return {
            "prepare": {
                "coords": spec.Tensor(["rows0", 4], "int32"),
                "cond": spec.Tensor(["batch", "tokens", config.cond_channels], "float32"),
            },
            "velocity": {
                "x": spec.Tensor(["rows0", config.in_channels], "float32"),
                "t": spec.Tensor(["batch"], "float32"),
                "sites": (*levels, shared),
                "context": (*(pair for _ in self.blocks), spec.Tensor(["offsets"], "int32")),
            },
        }


class _Tapped(SlatFlow):
    """The model whose velocity also returns inner results, for tests."""

    def __init__(self, config: SlatConfig, taps: Sequence[str]):
        super().__init__(config)
        self.taps = tuple(taps)

    def velocity(self, x: Tensor, t: Tensor, sites: tuple, context: tuple):
        """(velocity, inner results in the order of `taps`)."""
        found: dict[str, Tensor] = {}
        out = self._velocity(x, t, sites, context, found.__setitem__)
        if unknown := [name for name in self.taps if name not in found]:
            raise ValueError(f"taps: expected names among {', '.join(found)}, given {', '.join(unknown)} too")
        return out, [found[name] for name in self.taps]
