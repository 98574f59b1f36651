"""The transformer block that is imported for a benchmark: plain PyTorch, as anyone would write it."""

import torch
from torch import nn


class Block(nn.Module):
    """Pre-norm self attention and a GELU feed-forward layer, each with a scale per channel before its skip.

    x [B, S, channels] -> the same shape.
    """

    def __init__(self, channels: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.scale1, self.scale2 = (nn.Parameter(torch.randn(channels)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [3, B, H, S, D]
        h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, channels)
        x = x + self.scale1 * self.out(h)
        return x + self.scale2 * self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
