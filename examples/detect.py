"""A detector's backbone: a LiDAR sweep to a map seen from above, as SECOND does it.

    python -m examples.detect --out out/detect

Points become voxels, which hold their mean; sparse 3D convolutions thin these out to a dense map of the ground, and a small
2D head scores each place of it. The weights are random, so scores mean nothing: the picture shows how strongly the map answers.
The network is exported once for any number of points, saved, and run without torch on sweeps of three sizes.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

import sparse_ops.torch.spconv as spconv
from examples.pictures import draw, ramp, save
from examples.running import exported_and_run

ops = torch.ops.sparse_ops

# --- a street ------------------------------------------------------------------------------------------------------------

HEIGHT = 1.8  # of the scanner above the ground, in metres
REACH = 60.0


def street(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that stand on the ground: corners [B, 3] low and high, around a scanner at the origin."""
    boxes = [((-60, 11, -HEIGHT), (60, 12, 4.0)), ((-60, -14, -HEIGHT), (60, -13, 6.0))]  # walls along the street
    for side in (-8.0, -3.5, 3.5, 7.5):
        for x in np.arange(-45, 45, 9.0) + rng.uniform(-2, 2, 10):
            if abs(x) > 4 and rng.random() < 0.6:  # a car of 4.4 x 1.8 x 1.5 m
                boxes.append(((x - 2.2, side - 0.9, -HEIGHT), (x + 2.2, side + 0.9, 1.5 - HEIGHT)))
    for x in np.arange(-50, 50, 15.0):
        boxes += [((x, side, -HEIGHT), (x + 0.2, side + 0.2, 3.0)) for side in (-10.5, 9.5)]  # poles
    low, high = np.array(boxes).transpose(1, 0, 2)
    return low, high


def sweep(rng: np.random.Generator, beams: int, columns: int) -> np.ndarray:
    """Points float32 [N, 4] (x, y, z, brightness) that a scanner of so many beams sees in one turn."""
    low, high = street(rng)
    elevation, azimuth = np.meshgrid(np.radians(np.linspace(-24, 3, beams)), np.linspace(0, 2 * np.pi, columns, endpoint=False))
    rays = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    rays = rays.reshape(-1, 1, 3)  # [R, 1, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = low / rays, high / rays  # where a ray meets the planes of the faces, [R, B, 3]
        near, far = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
        hit = np.where((near <= far) & (near > 0), near, np.inf)
        ground = np.where(rays[:, :, 2] < 0, -HEIGHT / rays[:, :, 2], np.inf)
    distances = np.concatenate([ground, hit], 1)
    nearest = distances.argmin(1)
    distance = distances[np.arange(len(rays)), nearest] + rng.normal(0, 0.02, len(rays))
    brightness = np.where(nearest == 0, 0.2, 0.3 + nearest % 5 / 8)
    seen = distance < REACH
    return np.concatenate([rays[:, 0] * distance[:, None], brightness[:, None]], 1)[seen].astype("float32")


# --- the network ---------------------------------------------------------------------------------------------------------

LOW, HIGH = (-51.2, -25.6, -3.0), (51.2, 25.6, 5.0)  # what of the street counts, in metres
VOXEL = (0.2, 0.2, 0.2)
GRID = [40, 256, 512]  # of voxels (z, y, x)


def block(conv: nn.Module) -> spconv.SparseSequential:
    return spconv.SparseSequential(conv, nn.BatchNorm1d(conv.out_channels, eps=1e-3), nn.ReLU())


class Detector(nn.Module):
    """Points [N, 4] to {"map": [1, C, H, W], "scores": [1, classes, H, W]}."""

    def __init__(self, width: int = 16, stages: int = 3, classes: int = 3):
        super().__init__()
        layers = [block(spconv.SubMConv3d(4, width, 3, bias=False, indice_key="subm0"))]
        for stage in range(stages):
            layers += [
                block(spconv.SparseConv3d(width, 2 * width, 3, stride=2, padding=1, bias=False)),
                block(spconv.SubMConv3d(2 * width, 2 * width, 3, bias=False, indice_key=f"subm{stage + 1}")),
            ]
            width *= 2
        layers.append(block(spconv.SparseConv3d(width, width, (3, 1, 1), stride=(2, 1, 1), bias=False)))
        self.encoder = spconv.SparseSequential(*layers)
        floors = (GRID[0] // 2**stages - 3) // 2 + 1
        self.head = nn.Sequential(
            nn.Conv2d(floors * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, classes, 1),
        )
        self.register_buffer("low", torch.tensor(LOW))
        self.register_buffer("high", torch.tensor(HIGH))
        self.register_buffer("voxel", torch.tensor(VOXEL))

    def forward(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
        places = points[:, :3]
        points = points[((places >= self.low) & (places < self.high)).all(1)]
        features, indices = self.voxels(points)
        x = self.encoder(spconv.SparseConvTensor(features, indices, GRID, batch_size=1))
        seen = x.dense().flatten(1, 2)  # [1, C * D, H, W]: what is above a place is in its channels
        return {"map": seen, "scores": self.head(seen).sigmoid()}

    def voxels(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of the points [M, 4] of each voxel, and the voxels (batch, z, y, x)."""
        of_point = ops.quantize((points[:, :3] - self.low).flip(1).contiguous(), self.voxel.flip(0))  # [N, 4]
        indices, number = ops.downsample(of_point, 1)
        return ops.segment_pool(points, number, indices[:, 0].contiguous()), indices


# --- the script ----------------------------------------------------------------------------------------------------------


def main(
    out: Annotated[Path, typer.Option(help="Folder for the component and the picture.")] = Path("out/detect"),
    quick: Annotated[bool, typer.Option("--quick", help="A narrow network and few points.")] = False,
) -> None:
    """A LiDAR sweep as a map seen from above, by a detector's backbone that runs without torch. Weights are random."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sweeps = [sweep(rng, beams, columns) for beams, columns in ((16, 180), (16, 360), (32, 360) if quick else (64, 1440))]
    detector = (Detector(width=4, stages=2) if quick else Detector()).eval()

    results = exported_and_run(detector, "points", sweeps, "points", out)
    save(out / "detect.png", from_above(sweeps[-1]), answer(results[-1]["map"]))
    print(f"points, and how strongly the map answers: {out / 'detect.png'}")


def from_above(points: np.ndarray) -> np.ndarray:
    """The points, the high ones light."""
    points = points[np.argsort(points[:, 2])]
    places = (points[:, :2] - LOW[:2]) / VOXEL[:2]
    return draw(places, ramp(np.clip(points[:, 2], -HEIGHT, 2)), (GRID[2], GRID[1]), dot=2)


def answer(seen: np.ndarray) -> np.ndarray:
    """The length of the map's channels [1, C, H, W] at each place, as large as the picture of the points."""
    strength = np.log1p(np.linalg.norm(seen[0], axis=0))  # [H, W]
    return ramp(np.kron(strength, np.ones((GRID[1] // strength.shape[0], GRID[2] // strength.shape[1]))))


if __name__ == "__main__":
    typer.run(main)
