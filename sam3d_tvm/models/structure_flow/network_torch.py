"""The sparse-structure flow generator in PyTorch, with the parameter names of the upstream checkpoint.

`StructureFlowModel.forward` is a velocity as upstream computes it. The other methods compute the same in parts, each no more
often than its inputs change, and leave out what has no effect:

    embed_t(t), embed_d(d) -> [B, C]                     time and length of a step
    modulation(t_emb, d_emb) -> [num_blocks, B, 6 C]     shift, scale and gate of every block, twice
    context(cond) -> ((keys, values), ...)               of the shape's tokens, for every block
    begin(latents, modulation) -> streams                up to where the condition first comes in
    finish(streams, modulation, context, cond) -> velocities
    finish_unconditional(streams, modulation) -> velocities

Streams are [B, S, C] by name: the tokens of the shape, and those of all other latents.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim

from sam3d_tvm.models.example_torch import Example, outlier_factors, seeded
from sam3d_tvm.models.sparse_blocks import FREQUENCIES, LONGEST_PERIOD
from sam3d_tvm.models.structure_flow.config import SHAPE, StructureFlowConfig, preset
from sam3d_tvm.models.structure_flow.run import StructureFlow
from sparse_ops.deploy.component import Component

# Of a timestep, computed here so that a compiled model has the very bits: at t = 1000 every one is seen.
TIMESTEP_FREQUENCIES = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(FREQUENCIES, dtype=torch.float32) / FREQUENCIES)
NORM_EPS = 1e-6
FINAL_NORM_EPS = 1e-5

Streams = dict[str, Tensor]  # [B, S, C] by stream
Context = tuple[tuple[Tensor, Tensor], ...]  # keys and values [B, L, H, D] by block


class TimestepEmbedder(nn.Module):
    """[B] -> [B, channels]: 128 cosines, then 128 sines, through linear, SiLU, linear."""

    def __init__(self, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * TIMESTEP_FREQUENCIES
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class LatentMapping(nn.Module):
    """Between a latent [B, T, in_channels] and its tokens [B, T, channels]."""

    def __init__(self, in_channels: int, token_len: int, channels: int):
        super().__init__()
        self.input_layer = nn.Linear(in_channels, channels)
        self.out_layer = nn.Linear(channels, in_channels)
        self.pos_emb = nn.Parameter(torch.empty(token_len, channels))

    def enter(self, latent: Tensor) -> Tensor:
        return self.input_layer(latent) + self.pos_emb

    def leave(self, h: Tensor) -> Tensor:
        return self.out_layer(F.layer_norm(h, h.shape[-1:], eps=FINAL_NORM_EPS))


class HeadNorm(nn.Module):
    """x [B, S, H, D] -> x / max(|x|, 1e-12) * gamma * sqrt(D), |x| over the vector of a head."""

    def __init__(self, heads: int, depth: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(heads, depth))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.gamma * x.shape[-1] ** 0.5


class SelfAttention(nn.Module):
    """Tokens of the shape attend to each other; those of the other stream to each other and to the shape's."""

    def __init__(self, config: StructureFlowConfig):
        super().__init__()
        channels, heads = config.model_channels, config.num_heads
        self.heads = heads
        self.to_qkv = _per_stream(config, lambda: nn.Linear(channels, 3 * channels))
        self.q_rms_norm, self.k_rms_norm = (_per_stream(config, lambda: HeadNorm(heads, channels // heads)) for _ in range(2))
        self.to_out = _per_stream(config, lambda: nn.Linear(channels, channels))

    def forward(self, h: Streams) -> Streams:
        q, k, v = {}, {}, {}  # [B, S, H, D]
        for name, x in h.items():
            q[name], k[name], v[name] = (_heads(part, self.heads) for part in self.to_qkv[name](x).chunk(3, dim=-1))
            q[name], k[name] = self.q_rms_norm[name](q[name]), self.k_rms_norm[name](k[name])
        for name in h:
            if name != SHAPE:
                k[name], v[name] = (torch.cat([part[name], part[SHAPE]], dim=1) for part in (k, v))
        return {name: self.to_out[name](_attention(q[name], k[name], v[name])) for name in h}


class CrossAttention(nn.Module):
    """Tokens [B, S, C] attend to those of the condition [B, L, cond_channels]."""

    def __init__(self, config: StructureFlowConfig):
        super().__init__()
        channels = config.model_channels
        self.heads = config.num_heads
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(config.cond_channels, 2 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.attend(x, *self.context(cond))

    def context(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, H, D] of the condition."""
        keys, values = (_heads(part, self.heads) for part in self.to_kv(cond).chunk(2, dim=-1))
        return keys, values

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.to_out(_attention(_heads(self.to_q(x), self.heads), keys, values))

    def folded(self, x: Tensor, cond: Tensor) -> Tensor:
        """`forward` without keys and values, for few tokens x:

        logits = q (W_k cond + b_k)^T = (q W_k) cond^T + q b_k^T, whose last term is the same for all keys of a query, so that
        their softmax p does not change with it; out = p (W_v cond + b_v) = (p cond) W_v + b_v, as p adds up to 1.
        """
        channels = x.shape[-1]
        depth = channels // self.heads
        w_k, w_v = self.to_kv.weight.reshape(2, self.heads, depth, -1).unbind(0)  # [H, D, cond_channels]
        q = torch.einsum("bshd,hdc->bshc", _heads(self.to_q(x), self.heads), w_k)
        weights = (q.flatten(1, 2) @ cond.transpose(1, 2) * depth**-0.5).softmax(dim=-1)  # [B, S * H, L]
        out = torch.einsum("bshc,hdc->bshd", (weights @ cond).reshape(q.shape), w_v)
        return self.to_out(out.flatten(2) + self.to_kv.bias[channels:])

    def constant(self) -> Tensor:
        """What is added to every token if all of the condition is 0: all keys are alike, all values are their bias. [1, C]."""
        return self.to_out(self.to_kv.bias[None, self.to_out.in_features :])


class FeedForward(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Block(nn.Module):
    """Self attention, cross attention and a feed-forward layer; `modulation` [B, 6 C] acts on the first and the last."""

    def __init__(self, config: StructureFlowConfig):
        super().__init__()
        channels = config.model_channels
        self.self_attn = SelfAttention(config)
        self.norm2 = _per_stream(config, lambda: nn.LayerNorm(channels, eps=NORM_EPS))
        self.cross_attn = _per_stream(config, lambda: CrossAttention(config))
        self.mlp = _per_stream(config, lambda: FeedForward(channels, config.hidden))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))

    def attend(self, h: Streams, modulation: Tensor) -> Streams:
        shift, scale, gate, *_ = modulation.unsqueeze(1).chunk(6, dim=-1)  # [B, 1, C]
        out = self.self_attn({name: _modulated_norm(x, shift, scale) for name, x in h.items()})
        return {name: x + gate * out[name] for name, x in h.items()}

    def cross(self, h: Streams, cross_attention: Callable[[str, Tensor], Tensor]) -> Streams:
        """`cross_attention(stream, x)`: of normalised tokens x [B, S, C]."""
        return {name: x + cross_attention(name, self.norm2[name](x)) for name, x in h.items()}

    def feed(self, h: Streams, modulation: Tensor) -> Streams:
        *_, shift, scale, gate = modulation.unsqueeze(1).chunk(6, dim=-1)  # [B, 1, C]
        return {name: x + gate * self.mlp[name](_modulated_norm(x, shift, scale)) for name, x in h.items()}


class StructureFlowModel(nn.Module):
    """The velocity of every latent [B, token_len, in_channels], by name."""

    def __init__(self, config: StructureFlowConfig):
        super().__init__()
        self.config = config
        channels = config.model_channels
        self.latent_mapping = nn.ModuleDict(
            {name: LatentMapping(*latent, channels) for name, latent in config.latent_mapping.items()}
        )
        self.t_embedder, self.d_embedder = TimestepEmbedder(channels), TimestepEmbedder(channels)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))

    def forward(self, latents: dict[str, Tensor], t: Tensor, d: Tensor | None, cond: Tensor) -> dict[str, Tensor]:
        """`latents` [B, token_len, in_channels] by name; t, d [B], times 1000, without d its embedding is left out; cond
        [B, L, cond_channels], zeros for the unconditional velocity."""
        emb = self.t_embedder(t) if d is None else self.t_embedder(t) + self.d_embedder(d)
        h = self._enter(latents)
        for block in self.blocks:
            modulation = block.adaLN_modulation(emb)
            h = block.attend(h, modulation)
            h = block.cross(h, lambda name, x, block=block: block.cross_attn[name](x, cond))
            h = block.feed(h, modulation)
        return self._leave(h)

    def embed_t(self, t: Tensor) -> Tensor:
        return self.t_embedder(t)

    def embed_d(self, d: Tensor) -> Tensor:
        return self.d_embedder(d)

    def modulation(self, t_emb: Tensor, d_emb: Tensor) -> Tensor:
        emb = t_emb + d_emb
        return torch.stack([block.adaLN_modulation(emb) for block in self.blocks])

    def context(self, cond: Tensor) -> Context:
        return tuple(block.cross_attn[SHAPE].context(cond) for block in self.blocks)

    def begin(self, latents: dict[str, Tensor], modulation: Tensor) -> Streams:
        return self.blocks[0].attend(self._enter(latents), modulation[0])

    def finish(self, streams: Streams, modulation: Tensor, context: Context, cond: Tensor) -> dict[str, Tensor]:
        *_, last = self._conditional(streams, modulation, context, cond)
        return self._leave(last)

    def finish_unconditional(self, streams: Streams, modulation: Tensor) -> dict[str, Tensor]:
        *_, last = self._blocks(streams, modulation, lambda i, name, x: self.blocks[i].cross_attn[name].constant())
        return self._leave(last)

    def trace(self, latents: dict[str, Tensor], modulation: Tensor, context: Context, cond: Tensor) -> tuple[Streams, ...]:
        """For tests: the streams that enter the first block, and those behind every block, with the condition."""
        streams = self.begin(latents, modulation)
        return self._enter(latents), *self._conditional(streams, modulation, context, cond)

    def _conditional(self, streams: Streams, modulation: Tensor, context: Context, cond: Tensor) -> Iterator[Streams]:
        def cross_attention(i: int, name: str, x: Tensor) -> Tensor:
            layer = self.blocks[i].cross_attn[name]
            return layer.attend(x, *context[i]) if name == SHAPE else layer.folded(x, cond)

        return self._blocks(streams, modulation, cross_attention)

    def _blocks(
        self, h: Streams, modulation: Tensor, cross_attention: Callable[[int, str, Tensor], Tensor]
    ) -> Iterator[Streams]:
        """The streams behind every block, from those in the middle of the first."""
        for i, block in enumerate(self.blocks):
            h = block.attend(h, modulation[i]) if i else h
            h = block.cross(h, lambda name, x, i=i: cross_attention(i, name, x))
            h = block.feed(h, modulation[i])
            yield h

    def _enter(self, latents: dict[str, Tensor]) -> Streams:
        tokens = {name: mapping.enter(latents[name]) for name, mapping in self.latent_mapping.items()}
        return {stream: torch.cat([tokens[name] for name in names], 1) for stream, names in self.config.streams.items()}

    def _leave(self, h: Streams) -> dict[str, Tensor]:
        tokens = {}
        for stream, names in self.config.streams.items():
            start = 0
            for name in names:
                stop = start + self.config.latent_mapping[name].token_len
                tokens[name], start = h[stream][:, start:stop], stop
        return {name: mapping.leave(tokens[name]) for name, mapping in self.latent_mapping.items()}


def _per_stream(config: StructureFlowConfig, make: Callable[[], nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({stream: make() for stream in config.streams})


def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, C] -> [B, S, H, D]."""
    return x.unflatten(-1, (heads, -1))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Three of [B, S, H, D] -> [B, S, C]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


# Those that `StructureFlow` calls.
METHODS = ("embed_t", "embed_d", "modulation", "context", "begin", "finish", "finish_unconditional")


@dataclass(frozen=True)
class _Size:
    """The type of an argument: a shape of numbers, and of dimensions that every call chooses."""

    shape: tuple[int | Dim, ...]

    def example(self) -> Tensor:
        return torch.zeros([n if isinstance(n, int) else 2 for n in self.shape])

    def dynamic(self) -> dict[int, Dim]:
        return {axis: n for axis, n in enumerate(self.shape) if not isinstance(n, int)}


def export_arguments(
    config: StructureFlowConfig, methods: Sequence[str] = METHODS, batch: int | None = None, tokens: int | None = None
) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """What `port_component` takes as `inputs` and `dynamic`: any number of batch elements, and of tokens of the condition,
    unless one is given."""
    batch, tokens = batch or Dim("batch", min=1), tokens or Dim("tokens", min=1)
    channels, heads, blocks = config.model_channels, config.num_heads, config.num_blocks
    latents = {name: _Size((batch, latent.token_len, latent.in_channels)) for name, latent in config.latent_mapping.items()}
    lengths = {stream: sum(config.latent_mapping[name].token_len for name in names) for stream, names in config.streams.items()}
    streams = {stream: _Size((batch, length, channels)) for stream, length in lengths.items()}
    times, emb, modulation = _Size((batch,)), _Size((batch, channels)), _Size((blocks, batch, 6 * channels))
    cond, keys = _Size((batch, tokens, config.cond_channels)), _Size((batch, tokens, heads, channels // heads))
    context = ((keys, keys),) * blocks
    arguments = {
        "embed_t": (times,),
        "embed_d": (times,),
        "modulation": (emb, emb),
        "context": (cond,),
        "begin": (latents, modulation),
        "finish": (streams, modulation, context, cond),
        "finish_unconditional": (streams, modulation),
        "trace": (latents, modulation, context, cond),
    }
    chosen = {name: arguments[name] for name in methods}
    return pytree.tree_map(_Size.example, chosen), pytree.tree_map(_Size.dynamic, chosen)


COND_TOKENS = {"tiny": 33, "wide": 33, "full": 7528}


def example(size: str, seed: int = 0, num_blocks: int | None = None) -> Example:
    """One velocity with a condition, of which keys and values are computed before. `num_blocks`: fewer than all."""
    config = replace(preset(size), num_blocks=num_blocks or preset(size).num_blocks)
    module = seeded(partial(StructureFlowModel, config), seed)
    inputs, dynamic = export_arguments(config)
    random = torch.Generator().manual_seed(seed)
    latents = {
        name: torch.randn(1, latent.token_len, latent.in_channels, generator=random)
        for name, latent in config.latent_mapping.items()
    }
    cond = torch.randn(1, COND_TOKENS[size], config.cond_channels, generator=random)
    t, d = torch.tensor([350.0]), torch.tensor([0.0])

    def run(component: Component) -> Callable[[], Mapping[str, np.ndarray]]:
        flow = StructureFlow(component, config)
        plan, given = flow.prepare(cond.numpy()), {name: x.numpy() for name, x in latents.items()}
        return lambda: by_stream(flow.velocity(given, t.numpy(), d.numpy(), plan))

    def by_stream(velocities: Mapping[str, Tensor | np.ndarray]) -> dict[str, np.ndarray]:
        """Latents of one or three numbers are compared together: alone such a velocity may happen to be close to 0."""
        return {
            stream: np.concatenate([np.asarray(velocities[name]).ravel() for name in names])
            for stream, names in config.streams.items()
        }

    def make_outliers() -> None:
        """Behind every norm of the transformer."""
        factors = outlier_factors(config.model_channels)
        for block in module.blocks:
            for norm in block.norm2.values():
                norm.weight.mul_(factors)
            _, scale, _, _, feed_scale, _ = block.adaLN_modulation[1].bias.chunk(6)
            for bias in (scale, feed_scale):  # to which 1 is added
                bias.add_(factors - 1)

    arguments = (latents, t, d, cond)
    return Example(module, inputs, lambda: by_stream(module(*arguments)), run, dynamic, arguments, make_outliers)
