"""A U-Net that labels the points of a room: trained in torch through our ops, exported, and run without torch.

    python -m examples.segment --out out/segment --minutes 5

The network is a small SpUNet, written with spconv's layers: a stem, four stages that halve the grid, and inverse convolutions
back, each joined with what the way down had there. Every step of the training sees new rooms (`examples.rooms`); what counts
is how well rooms are labelled that it never sees. Then the network is exported once for any number of points, saved, and run on
three such rooms in a process that has no torch.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.export import Dim

import sparse_ops.torch.spconv as spconv
from examples.pictures import GROUND, draw_solid, save
from examples.rooms import LABELS, room_of
from examples.running import difference, run_without_torch
from sparse_ops.deploy.from_torch import port_component

ops = torch.ops.sparse_ops
VOXEL = 0.08  # metres

# --- the network ---------------------------------------------------------------------------------------------------------


def block(conv: nn.Module) -> spconv.SparseSequential:
    return spconv.SparseSequential(conv, nn.BatchNorm1d(conv.out_channels, eps=1e-3), nn.ReLU())


class ResidualBlock(spconv.SparseModule):
    """Two convolutions around a skip, on the voxels that they are given."""

    def __init__(self, cin: int, cout: int, key: str):
        super().__init__()
        self.conv1 = spconv.SubMConv3d(cin, cout, 3, bias=False, indice_key=key)
        self.norm1 = nn.BatchNorm1d(cout, eps=1e-3)
        self.conv2 = spconv.SubMConv3d(cout, cout, 3, bias=False, indice_key=key)
        self.norm2 = nn.BatchNorm1d(cout, eps=1e-3)
        self.skip = nn.Identity() if cin == cout else nn.Linear(cin, cout, bias=False)

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        y = self.conv1(x)
        y = self.conv2(y.replace_feature(torch.relu(self.norm1(y.features))))
        return y.replace_feature(torch.relu(self.norm2(y.features) + self.skip(x.features)))


class SpUNet(nn.Module):
    """Points float32 [N, 6] (x, y, z in metres, at least 0, and red, green, blue) to {"scores": [N, labels]}.

    `widths`: channels of the stem and of each stage on the way down; the way up has those of the stage that it comes to.
    """

    def __init__(self, labels: int, widths: tuple[int, ...] = (16, 32, 48, 64, 96)):
        super().__init__()
        stem, *below = widths
        self.stem = block(spconv.SubMConv3d(6, stem, 5, bias=False, indice_key="stem"))
        self.down, self.left, self.up, self.right = (nn.ModuleList() for _ in range(4))
        for stage, (cin, cout) in enumerate(zip(widths, below, strict=False)):
            self.down.append(block(spconv.SparseConv3d(cin, cout, 2, stride=2, bias=False, indice_key=f"down{stage}")))
            self.left.append(ResidualBlock(cout, cout, f"level{stage + 1}"))
            self.up.append(block(spconv.SparseInverseConv3d(cout, cin, 2, f"down{stage}", bias=False)))
            self.right.append(ResidualBlock(2 * cin, cin, f"level{stage}"))
        self.head = nn.Linear(stem, labels)

    def forward(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.scores(points, None, 1)}

    def scores(self, points: torch.Tensor, room: torch.Tensor | None, rooms: int) -> torch.Tensor:
        """[N, labels], of points of several rooms: those of number int32 [N], all of one room without."""
        features, indices, number = self.voxels(points, room)
        extent = (indices.max(0).values[1:] + 16).tolist()
        x = self.stem(spconv.SparseConvTensor(features, indices, extent, rooms))
        skips = []
        for down, left in zip(self.down, self.left, strict=True):
            skips.append(x)
            x = left(down(x))
        for up, right in zip(reversed(self.up), reversed(self.right), strict=True):
            x, skip = up(x), skips.pop()
            x = right(x.replace_feature(torch.cat([x.features, skip.features], 1)))
        return ops.gather_rows(self.head(x.features), number)

    def voxels(self, points: torch.Tensor, room: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features [V, 6]: colour, and where in the voxel its points lie; the voxels [V, 4]; and the voxel of each point."""
        places = points[:, :3].contiguous()
        of_point = ops.quantize(places, torch.full((3,), VOXEL), room)  # [N, 4]
        indices, number = ops.downsample(of_point, 1)
        within = places / VOXEL - of_point[:, 1:] - 0.5
        features = ops.segment_pool(torch.cat([points[:, 3:] - 0.5, within], 1), number, indices[:, 0].contiguous())
        return features, indices, number


# --- training ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How much of everything there is."""

    widths: tuple[int, ...] = (16, 32, 48, 64, 96)
    side: tuple[float, float] = (3.5, 5.5)  # of a room, in metres
    density: float = 500.0  # points to a square metre
    rooms: int = 2  # of a step
    held_out: int = 6


QUICK = Sizes((8, 16, 16, 16, 16), (2.8, 3.4), 250.0, 1, 2)


def room(sizes: Sizes, *seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels of the room of a seed."""
    return room_of(np.random.default_rng(seed), size=sizes.side, density=sizes.density)


def train(network: SpUNet, sizes: Sizes, steps: int, minutes: float, seed: int, console: Console) -> None:
    """Until the steps are done or the minutes over; the rate falls towards whichever comes first."""
    held_out = [room(sizes, seed, 1, number) for number in range(sizes.held_out)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.01)
    shown = TextColumn("{task.fields[said]}")
    begun = time.perf_counter()
    with Progress(TextColumn("training"), BarColumn(), TimeElapsedColumn(), shown, console=console) as progress:
        bar, loss_so_far, said = progress.add_task("", total=1.0, said=""), None, ""
        for step in range(steps):
            done = max(step / steps, (time.perf_counter() - begun) / (60 * minutes))
            if done >= 1:
                break
            for group in optimizer.param_groups:  # up for a tenth of the way, then down along half a cosine
                group["lr"] = 0.01 * min(10 * done + 0.05, 0.5 + 0.5 * np.cos(np.pi * done))
            points, labels = zip(*(room(sizes, seed, 0, step, number) for number in range(sizes.rooms)), strict=True)
            of_room = torch.arange(sizes.rooms, dtype=torch.int32).repeat_interleave(torch.tensor([len(p) for p in points]))
            network.train()
            scores = network.scores(torch.from_numpy(np.concatenate(points)), of_room, sizes.rooms)
            loss = nn.functional.cross_entropy(scores, torch.from_numpy(np.concatenate(labels)), balance(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_so_far = loss.item() if loss_so_far is None else 0.95 * loss_so_far + 0.05 * loss.item()
            if (step + 1) % max(1, steps // 12) == 0:
                said = f", mIoU {np.nanmean(ious(confusion(network, held_out))):.3f} on rooms never seen"
                console.print(f"step {step + 1:4d}: loss {loss_so_far:.3f}{said}")
            progress.update(bar, completed=max(done, (step + 1) / steps), said=f"loss {loss_so_far:.3f}{said}")
        progress.update(bar, completed=1.0)
    counts = confusion(network, held_out)
    table = Table("label", "points", "IoU", title=f"{sizes.held_out} rooms that were never seen")
    for label, points, iou in zip(LABELS, counts.sum(1), ious(counts), strict=True):
        table.add_row(label, f"{points:,}", f"{iou:.3f}")
    table.add_section()
    table.add_row("mean", f"{counts.sum():,}", f"{np.nanmean(ious(counts)):.3f}")
    console.print(table)


def balance(labels) -> torch.Tensor:
    """A weight for each label, so that a lamp is not lost among the walls."""
    counts = np.bincount(np.concatenate(labels), minlength=len(LABELS))
    return torch.from_numpy((1 / np.sqrt(np.maximum(counts, 50))).astype("float32"))


def predicted(network: SpUNet, points: np.ndarray) -> np.ndarray:
    """The label int64 [N] of each point."""
    network.eval()
    with torch.no_grad():
        return network(torch.from_numpy(points))["scores"].argmax(1).numpy()


def confusion(network: SpUNet, rooms) -> np.ndarray:
    """int64 [labels, labels]: how many points of a label, a row, were given another, a column."""
    counts = np.zeros((len(LABELS), len(LABELS)), "int64")
    for points, labels in rooms:
        np.add.at(counts, (labels, predicted(network, points)), 1)
    return counts


def ious(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each label; NaN for one that is nowhere."""
    hit = np.diag(counts)
    with np.errstate(invalid="ignore"):
        return hit / (counts.sum(0) + counts.sum(1) - hit)


# --- pictures ------------------------------------------------------------------------------------------------------------

COLOURS = np.array(
    [
        *((128, 100, 84), (196, 196, 188), (92, 176, 255), (196, 112, 44), (250, 210, 60)),
        *((240, 90, 90), (90, 200, 110), (170, 110, 230), (255, 140, 220)),
    ],
    "uint8",
)


def labelled(points: np.ndarray, labels: np.ndarray, pixels: int = 640) -> np.ndarray:
    """The room from obliquely above, without the two walls in front."""
    behind = (points[:, :2] > points[:, :2].min(0) + 0.3).all(1)
    return draw_solid(points[behind, :3] / 0.045, COLOURS[labels[behind]], pixels)


def legend(pixels: int = 640) -> np.ndarray:
    picture = Image.new("RGB", (130, pixels), tuple(map(int, GROUND)))
    pen = ImageDraw.Draw(picture)
    for number, (label, colour) in enumerate(zip(LABELS, COLOURS, strict=True)):
        pen.rectangle((16, 20 + 26 * number, 32, 36 + 26 * number), fill=tuple(map(int, colour)))
        pen.text((42, 22 + 26 * number), label, fill=(235, 235, 235))
    pen.multiline_text((16, 40 + 26 * len(LABELS)), "left: as it is\nright: as labelled", fill=(170, 170, 170))
    return np.asarray(picture)


# --- the script ----------------------------------------------------------------------------------------------------------


def main(
    out: Annotated[Path, typer.Option(help="Folder for the component and the picture.")] = Path("out/segment"),
    steps: Annotated[int | None, typer.Option(min=1, help="Of the training, at most.", show_default="600, quick 60")] = None,
    minutes: Annotated[float, typer.Option(min=0.05, help="Minutes of the training, at most.")] = 8.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the rooms and the weights.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A narrow network, small rooms and few steps.")] = False,
) -> None:
    """Train a U-Net that labels the points of rooms, export it, and run it without torch."""
    console, sizes = Console(), QUICK if quick else Sizes()
    steps = steps or (60 if quick else 600)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = SpUNet(len(LABELS), sizes.widths)
    train(network, sizes, steps, minutes, seed, console)

    network.eval()
    start = time.perf_counter()
    rooms = [room(sizes, seed, 2, number) for number in range(3)]
    example = torch.from_numpy(rooms[0][0])
    component = port_component(network, (example,), "segment", dynamic={"points": {0: Dim("points")}})
    component.save(out / "component")
    console.print(f"exported for any number of points in {time.perf_counter() - start:.0f} s: {out / 'component'}")

    results = run_without_torch(out / "component", [{"points": points} for points, _ in rooms])
    for (points, labels), (found, milliseconds) in zip(rooms, results, strict=True):
        with torch.no_grad():
            expected = {name: x.numpy() for name, x in network(torch.from_numpy(points)).items()}
        worst, right = difference(found, expected), (found["scores"].argmax(1) == labels).mean()
        console.print(
            f"{len(points):6d} points: {milliseconds:6.1f} ms without torch, {worst:.1e} from the eager network, "
            f"{right:.0%} of the labels right"
        )
        if worst > 1e-3:
            raise SystemExit("the compiled network computes something else")

    points, labels = rooms[-1]
    save(out / "segment.png", labelled(points, labels), labelled(points, results[-1][0]["scores"].argmax(1)), legend())
    console.print(f"a room that was never seen, as it is and as labelled: {out / 'segment.png'}")


if __name__ == "__main__":
    typer.run(main)
