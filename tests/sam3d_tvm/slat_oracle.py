"""Oracle of the structured-latent generator: numpy, float64, from the oracles of the kernels, any number of levels."""

import numpy as np

from sam3d_tvm.models.slat_generator import SlatConfig
from tir_kernels.spec import attention, layer_norm, linear, rms_norm_heads, segment_pool, sparse_conv, unique
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_table
from tir_kernels.spec.pool import Reduction

silu = ACTIVATIONS["silu"]


class Oracle:
    """`state`: arrays by parameter name."""

    def __init__(self, config: SlatConfig, state: dict[str, np.ndarray]):
        self.config = config
        self.state = {name: np.asarray(value).astype(np.float64) for name, value in state.items()}

    def velocity(self, coords, x, t, cond) -> np.ndarray:
        """coords int32 [N, 4], x [N, in_channels], t [B], cond [B, L, cond_channels] -> [N, out_channels]."""
        config, batch = self.config, len(cond)
        levels, parents = [coords], []
        for _ in range(config.levels):
            coarser, parent = unique.naive(levels[-1], (2, 2, 2))
            levels.append(coarser)
            parents.append(parent)
        tables = [naive_table(level, level, Geometry.submanifold((3, 3, 3))) for level in levels]
        t_emb = self._linear("t_embedder.mlp.2", silu(self._linear("t_embedder.mlp.0", self._waves(t))))
        self.emb = silu(t_emb)

        h = self._linear("input_layer", x)
        skips, level = [], 0
        for i in range(config.levels * config.num_io_res_blocks):
            if (i + 1) % config.num_io_res_blocks == 0:
                level += 1
                h = segment_pool.naive(h, parents[level - 1], len(levels[level]), Reduction("mean", 1))
            h = self._resblock(f"input_blocks.{i}", h, levels[level], tables[level])
            skips.append(h)
        h = h + self._positions(levels[-1])
        index = levels[-1][:, 0]
        offsets = np.searchsorted(index, np.arange(batch + 1))
        for i in range(config.num_blocks):
            h = self._block(f"blocks.{i}", h, index, offsets, cond)
        for i in range(config.levels * config.num_io_res_blocks):
            h = np.concatenate([h, skips.pop()], axis=1)
            if i % config.num_io_res_blocks == 0:
                level -= 1
                h = h[parents[level]]
            h = self._resblock(f"out_blocks.{i}", h, levels[level], tables[level])
        return self._linear("out_layer", layer_norm.naive(h, eps=1e-5))

    def _linear(self, name, x):
        return linear.naive(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _waves(self, t):
        angles = np.asarray(t, np.float64)[:, None] * np.exp(-np.log(10000) * np.arange(128) / 128)
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    def _positions(self, coords):
        count = self.config.model_channels // 6
        angles = coords[:, 1:, None] * 10000.0 ** (-np.arange(count) / max(count, 1))  # [M, 3, count]
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=2).reshape(len(coords), 6 * count)
        return np.pad(waves, ((0, 0), (0, self.config.model_channels - 6 * count)))

    def _resblock(self, name, x, coords, table):
        def conv(part, x):
            weight = self.state[f"{name}.{part}.conv.weight"]
            taps = weight.reshape(weight.shape[0], 27, -1).transpose(1, 2, 0)
            return sparse_conv.naive(x, taps, table, self.state[f"{name}.{part}.conv.bias"])

        h = layer_norm.naive(x, self.state[f"{name}.norm1.weight"], self.state[f"{name}.norm1.bias"])
        h = conv("conv1", silu(h))
        scale, shift = np.split(self._linear(f"{name}.emb_layers.1", self.emb), 2, axis=1)
        h = conv("conv2", layer_norm.naive(h, None, None, scale, shift, coords[:, 0], activation="silu"))
        return h + (self._linear(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in self.state else x)

    def _block(self, name, x, index, offsets, cond):
        def heads(x):
            return x.reshape(len(x), self.config.heads, x.shape[1] // self.config.heads)

        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(
            self._linear(f"{name}.adaLN_modulation.1", self.emb), 6, axis=1
        )
        h = layer_norm.naive(x, None, None, scale, shift, index)
        q, k, v = (heads(part) for part in np.split(self._linear(f"{name}.self_attn.to_qkv", h), 3, axis=1))
        if self.config.qk_rms_norm:
            q = rms_norm_heads.naive(q, self.state[f"{name}.self_attn.q_rms_norm.gamma"])
            k = rms_norm_heads.naive(k, self.state[f"{name}.self_attn.k_rms_norm.gamma"])
        h = attention.naive(q, k, v, offsets, offsets).reshape(x.shape)
        x = x + self._linear(f"{name}.self_attn.to_out", h) * gate[index]

        h = layer_norm.naive(x, self.state[f"{name}.norm2.weight"], self.state[f"{name}.norm2.bias"])
        q = heads(self._linear(f"{name}.cross_attn.to_q", h))
        tokens = cond.reshape(-1, cond.shape[-1])
        k, v = (heads(part) for part in np.split(self._linear(f"{name}.cross_attn.to_kv", tokens), 2, axis=1))
        h = attention.naive(q, k, v, offsets, np.arange(len(cond) + 1) * cond.shape[1]).reshape(x.shape)
        x = x + self._linear(f"{name}.cross_attn.to_out", h)

        h = self._linear(f"{name}.mlp.mlp.0", layer_norm.naive(x, None, None, mlp_scale, mlp_shift, index))
        return x + self._linear(f"{name}.mlp.mlp.2", ACTIVATIONS["gelu_tanh"](h)) * mlp_gate[index]
