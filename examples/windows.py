"""A transformer on voxels: attention in shifted windows, as TRELLIS' decoders have it, then every voxel divided into eight.

    python -m examples.windows --out out/windows

A voxel knows its place from sines of its coordinates and attends to the others in its window; windows are shifted by half in
every other block. Submanifold convolutions follow, on voxels half as large. The weights are random: the colours mean nothing.
The network is exported once for any number of voxels, saved, and run without torch on three solids.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import nn

import sparse_ops.torch.spconv as spconv
from examples.pictures import draw_solid, save
from examples.running import exported_and_run

ops = torch.ops.sparse_ops
WINDOW = 8  # voxels along each axis


# --- solids --------------------------------------------------------------------------------------------------------------


def rings(grid: int) -> np.ndarray:
    """The surface of two linked rings, as voxels int32 [N, 4] (batch, x, y, z) of a grid of that size."""
    x, y, z = np.stack(np.meshgrid(*[(np.arange(grid) + 0.5) / grid * 2 - 1] * 3, indexing="ij"))
    flat = np.hypot(np.hypot(x + 0.28, y) - 0.5, z) - 0.12  # distance from a ring that lies, and one that stands
    upright = np.hypot(np.hypot(x - 0.28, z) - 0.5, y) - 0.12
    surface = np.abs(np.minimum(flat, upright)) < 1.7 / grid
    return np.ascontiguousarray(np.argwhere(surface[None]), "int32")


# --- the network ---------------------------------------------------------------------------------------------------------


class WindowAttention(nn.Module):
    """Features [N, C] to what each voxel gathers from those of its window."""

    def __init__(self, channels: int, heads: int, shift: int):
        super().__init__()
        self.heads, self.shift = heads, shift
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 3, self.heads, x.shape[1] // self.heads).unbind(1)  # [N, heads, d]
        # The voxels window after window, and where each window begins.
        order, offsets = ops.window_partition(indices, [WINDOW] * 3, [self.shift] * 3)
        return self.out(ops.attention(q, k, v, offsets, offsets, None, order, order).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, channels: int, heads: int, shift: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, shift)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(approximate="tanh"), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), indices)
        return x + self.mlp(self.norm2(x))


class Subdivide(nn.Module):
    """Features of voxels [N, C] to those of the eight that each is divided into [8N, C / 2]."""

    def __init__(self, channels: int, groups: int = 8):
        super().__init__()
        self.groups, narrow = groups, channels // 2
        self.norm = nn.GroupNorm(groups, channels)
        self.conv1 = spconv.SubMConv3d(channels, narrow, 3, indice_key="fine")
        self.conv2 = spconv.SubMConv3d(narrow, narrow, 3, indice_key="fine")
        self.skip = nn.Linear(channels, narrow)

    def forward(self, x: torch.Tensor, indices: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Statistics over all voxels of a batch element, not over each: the op knows where elements begin.
        offsets = ops.batch_offsets(indices, 1)
        h = F.silu(ops.group_norm(x, offsets, self.norm.weight, self.norm.bias, self.groups, self.norm.eps))
        fine = ops.subdivide(indices, 2)  # [8N, 4]
        h = self.conv1(spconv.SparseConvTensor(eightfold(h), fine, [2 * grid] * 3, batch_size=1))
        h = self.conv2(h.replace_feature(F.silu(h.features)))
        return h.features + self.skip(eightfold(x)), fine


def eightfold(x: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(1).expand(-1, 8, -1).flatten(0, 1)


class WindowTransformer(nn.Module):
    """Voxels int32 [N, 4] to {"colours": [8N, 3], "indices": [8N, 4]}."""

    def __init__(self, channels: int, blocks: int, heads: int, grid: int):
        super().__init__()
        self.channels, self.grid = channels, grid
        self.blocks = nn.ModuleList([Block(channels, heads, WINDOW // 2 * (number % 2)) for number in range(blocks)])
        self.subdivide = Subdivide(channels)
        self.head = nn.Linear(channels // 2, 3)

    def forward(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.places(indices)
        for block in self.blocks:
            x = block(x, indices)
        x, fine = self.subdivide(x, indices, self.grid)
        return {"colours": self.head(x), "indices": fine}

    def places(self, indices: torch.Tensor) -> torch.Tensor:
        """Sines and cosines of each coordinate [N, C], the slowest of a wavelength beyond the grid."""
        count = self.channels // 6
        frequencies = (2 * self.grid) ** -(torch.arange(count) / count)
        angles = indices[:, 1:].float().unsqueeze(-1) * frequencies  # [N, 3, count]
        waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
        return F.pad(waves, (0, self.channels - waves.shape[1]))


# --- the script ----------------------------------------------------------------------------------------------------------


def main(
    out: Annotated[Path, typer.Option(help="Folder for the component and the picture.")] = Path("out/windows"),
    quick: Annotated[bool, typer.Option("--quick", help="A narrow network and few voxels.")] = False,
) -> None:
    """Attention in shifted windows of voxels, and voxels divided into eight, without torch. Weights are random."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    grid = 24 if quick else 64
    solids = [rings(size) for size in (grid // 4, grid // 2, grid)]
    network = WindowTransformer(*((48, 2, 2) if quick else (192, 6, 6)), grid).eval()

    results = exported_and_run(network, "indices", solids, "voxels", out)
    save(out / "windows.png", in_windows(solids[-1]), coloured(results[-1]))
    print(f"voxels by their window, and the colours of their eighths: {out / 'windows.png'}")


def in_windows(indices: np.ndarray, pixels: int = 480) -> np.ndarray:
    """The voxels, those of one window in one colour."""
    colours = np.random.default_rng(1).integers(60, 255, (4096, 3), "uint8")
    number = indices[:, 1:] // WINDOW @ [256, 16, 1]
    return draw_solid(indices[:, 1:], colours[number], pixels)


def coloured(found: dict[str, np.ndarray], pixels: int = 480) -> np.ndarray:
    """The voxels in the colours that the network gave them, each channel over all of its range."""
    values = found["colours"]
    low, high = np.quantile(values, [0.02, 0.98], axis=0)
    colours = (np.clip((values - low) / (high - low), 0, 1) * 255).astype("uint8")
    return draw_solid(found["indices"][:, 1:], colours, pixels)


if __name__ == "__main__":
    typer.run(main)
