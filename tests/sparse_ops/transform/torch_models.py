"""Small torch models as anyone would write them, and both ways to import them."""

import torch
import torch.nn.functional as F
import tvm
from torch import nn
from torch.export import Dim
from tvm.relax.frontend.torch import from_exported_program


class Attention(nn.Module):
    """Self-attention, or, with a context, cross-attention."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x):
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, channels))


class CrossAttention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x, context):
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.q, x), (self.k, context), (self.v, context))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ViTBlock(nn.Module):
    def __init__(self, channels: int = 32, heads: int = 2):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=1e-6) for _ in range(2))
        self.attention = Attention(channels, heads)
        self.scale1, self.scale2 = (nn.Parameter(torch.rand(channels)) for _ in range(2))  # LayerScale
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x):
        x = x + self.attention(self.norm1(x)) * self.scale1
        return x + self.mlp(self.norm2(x)) * self.scale2


class AdaLNBlock(nn.Module):
    """A block of a diffusion transformer, with cross-attention."""

    def __init__(self, channels: int = 32, heads: int = 2):
        super().__init__()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))
        self.norm1, self.norm3 = (nn.LayerNorm(channels, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.norm2 = nn.LayerNorm(channels)
        self.attention, self.cross = Attention(channels, heads), CrossAttention(channels, heads)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(approximate="tanh"), nn.Linear(4 * channels, channels)
        )

    def forward(self, x, emb, context):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(emb).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate * self.attention(self.norm1(x) * (1 + scale) + shift)
        x = x + self.cross(self.norm2(x), context)
        return x + mlp_gate * self.mlp(self.norm3(x) * (1 + mlp_scale) + mlp_shift)


class ConvNet(nn.Module):
    """Residual blocks on a grid, and a patch embedding."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.first = nn.Conv3d(3, channels, 3, padding=1)
        self.norm = nn.GroupNorm(4, channels)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        self.down = nn.Conv3d(channels, 2 * channels, 2, stride=2)
        self.patches = nn.Conv2d(3, channels, 4, stride=4)

    def forward(self, grid, image):
        h = self.first(grid)
        h = h + self.second(F.silu(self.norm(h)))
        return self.down(h), self.patches(image).flatten(2).transpose(1, 2)


def imported(model: nn.Module, inputs: tuple, dynamic: tuple | None = None, whole: bool = False, **options) -> tvm.IRModule:
    """`model` as a Relax module. `dynamic`: for each input the names of its dimensions, or None for static ones; `whole`: by
    a way that keeps attention, linear layers and layer norms as one op each, where TVM's default takes attention apart.
    """
    dims = {name: Dim(name) for shape in dynamic or () for name in shape if name}
    shapes = dynamic and tuple({axis: dims[name] for axis, name in enumerate(shape) if name} for shape in dynamic)
    program = torch.export.export(model.eval(), inputs, dynamic_shapes=shapes)
    if whole:
        table = torch.export.default_decompositions()
        for op in (torch.ops.aten.scaled_dot_product_attention, torch.ops.aten.linear, torch.ops.aten.layer_norm):
            table.pop(op.default, None)
        program = program.run_decompositions(table)
        options["run_ep_decomposition"] = False
    return from_exported_program(program, unwrap_unit_return_tuple=True, **options)
