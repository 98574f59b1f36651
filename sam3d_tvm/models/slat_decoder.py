"""What the decoders of structured latents share: sizes, a transformer within shifted windows of voxels, checks of input, and
what their descriptors say."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm

from sam3d_tvm.checks import check_coords, check_finite, check_size
from sam3d_tvm.models.config_checks import check_only, check_transformer, from_names
from sam3d_tvm.models.sparse_blocks import FeedForward, Record, absolute_positions, ignore
from sam3d_tvm.models.upstream import without
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_nn import component_from_nn
from sparse_ops.deploy.weights import State
from sparse_ops.eager.arrays import as_kind, as_tensor
from sparse_ops.nn import LayerNorm, Linear, Module, ModuleList, SymbolicSparseTensor, WindowedSelfAttention


@dataclass(frozen=True)
class SlatDecoderConfig:
    """Sizes of the transformer, named as upstream names them.

    Attention takes place within windows of `window_size` voxels along each axis, which every second block shifts by half of
    that. `num_heads` defaults to model_channels / num_head_channels. `resolution` bounds the coordinates. What
    `representation_config` holds is said by the decoder. `use_fp16` and `use_checkpoint` are taken and have no effect, as
    precision is chosen when a decoder is compiled, and nothing is trained.

    Raises ValueError for sizes that do not fit together, and for variants of the model that nobody has trained.
    """

    resolution: int
    model_channels: int
    latent_channels: int
    num_blocks: int
    representation_config: Mapping = field(hash=False)
    num_heads: int | None = None
    num_head_channels: int = 64
    mlp_ratio: float = 4
    attn_mode: str = "swin"
    window_size: int = 8
    pe_mode: str = "ape"
    use_fp16: bool = False
    use_checkpoint: bool = False
    qk_rms_norm: bool = False

    def __post_init__(self):
        for name in ("resolution", "model_channels", "latent_channels", "num_head_channels", "window_size"):
            check_size(name, getattr(self, name), 1)
        check_size("num_blocks", self.num_blocks, 0)
        if self.num_heads is not None:
            check_size("num_heads", self.num_heads, 1)
        check_transformer(self)
        if not isinstance(self.representation_config, Mapping):
            raise ValueError(f"representation_config: expected values by name, given {self.representation_config!r}")
        check_only(self, {"attn_mode": "swin", "pe_mode": "ape", "qk_rms_norm": False})

    @classmethod
    def from_dict(cls, values: Mapping) -> "SlatDecoderConfig":
        """From names and values; ValueError for a name that is unknown or missing, or a value that does not fit."""
        return from_names(cls, values)

    @property
    def heads(self) -> int:
        return self.num_heads or self.model_channels // self.num_head_channels

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers."""
        return int(self.model_channels * self.mlp_ratio)


class WindowBlock(Module):
    """Transformer block: attention within windows and a feed-forward layer, each with a norm before and a skip."""

    def __init__(self, config: SlatDecoderConfig, shift: int):
        channels = config.model_channels
        self.norm1 = LayerNorm(channels, affine=False)
        self.norm2 = LayerNorm(channels, affine=False)
        self.attn = WindowedSelfAttention(channels, config.heads, config.window_size, shift)
        self.mlp = FeedForward(channels, config.hidden)

    def forward(self, x: SymbolicSparseTensor) -> SymbolicSparseTensor:
        """x [N, C] -> [N, C]."""
        x = self.attn(self.norm1(x), x)
        return self.mlp(self.norm2(x), x)


class SlatTransformer(Module):
    """The part that both decoders begin with. Its parameters have the names of the upstream checkpoints."""

    def __init__(self, config: SlatDecoderConfig):
        self.config = config
        self.input_layer = Linear(config.latent_channels, config.model_channels)
        shifts = [config.window_size // 2 * (block % 2) for block in range(config.num_blocks)]
        self.blocks = ModuleList([WindowBlock(config, shift) for shift in shifts])

    def transform(self, x: SymbolicSparseTensor, record: Record = ignore) -> SymbolicSparseTensor:
        """x [N, latent_channels] -> [N, model_channels]. Records "input_layer", "block0_in" and "block{i}"."""
        h = self.input_layer(x)
        record("input_layer", h.feats)
        h = h.with_feats(h.feats + absolute_positions(x.coords, self.config.model_channels))
        record("block0_in", h.feats)
        for i, block in enumerate(self.blocks):
            h = block(h)
            record(f"block{i}", h.feats)
        return h


def checked_component(component: Component, config: SlatDecoderConfig) -> Component:
    """The component; ValueError unless its function "forward" begins with features of `latent_channels` and coordinates."""
    given = [spec.shape[1:] for spec in component["forward"].spec.inputs[:2]]
    if given != (expected := [(config.latent_channels,), (4,)]):
        raise ValueError(f"component: expected inputs of {expected} columns as the config says, given {given}")
    return component


def checked_latents(coords, feats, config: SlatDecoderConfig) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates int32 [N, 4] and features float32 [N, latent_channels] as numpy arrays.

    ValueError unless they are that, features are finite, every voxel is there once, x, y, z are from 0 to resolution - 1, and
    the rows of each batch element together and ascending by batch.
    """
    coords = as_kind(as_tensor(coords, "coords", ("int32",), (None, 4)), "numpy")
    feats = as_kind(as_tensor(feats, "feats", ("float32",), (len(coords), config.latent_channels)), "numpy")
    check_finite("feats", feats)
    batch = int(coords[:, 0].max(initial=0)) + 1
    check_coords(coords, batch, config.resolution)
    keys = np.ravel_multi_index(coords.T.astype(np.int64), (batch, *[config.resolution] * 3))
    _, first = np.unique(keys, return_index=True)
    if len(first) < len(keys):
        row = np.setdiff1d(np.arange(len(keys)), first)[0]
        raise ValueError(f"coords: expected every voxel once, given {coords[row].tolist()} again in row {row}")
    return coords, feats


def fits_latents(name: str, config: SlatDecoderConfig, pipeline: Any) -> Iterable[tuple[str, Any, Any]]:
    """What a decoder has to have of the generator before it, see `descriptor.Model.fits`."""
    yield f"{name}.latent_channels", config.latent_channels, pipeline.slat_generator.out_channels
    yield f"{name}.resolution", config.resolution, pipeline.slat_generator.resolution


def read_values(config: type[SlatDecoderConfig]) -> Callable[[Mapping[str, Any]], SlatDecoderConfig]:
    """What makes a config of the values beside a `_target_`."""
    return lambda values: config.from_dict(without(values, "condition_embedder", "pretrained_ckpt_path", "use_checkpoint"))


def compile_decoder(network: type[SlatTransformer]) -> Callable[..., Component]:
    """What compiles a network whose `specs()` are its functions, see `descriptor.Compile`."""

    def compile_network(
        config: SlatDecoderConfig, state: State, name: str, precision: str, target: tvm.target.Target | None
    ) -> Component:
        model = network(config)
        return component_from_nn(model, model.specs(), name, state, precision=precision, target=target)

    return compile_network
