"""What the trained tiny model makes of photos of objects that it was never trained on, against these objects.

    python -m benchmarks.quality [--objects 100] [--seeds 5] [--sheet FILE] [--json FILE] [--quick]
    python -m benchmarks.quality --settings exact,normal,draft,steps=12+slat_steps=8 --precisions float32,bfloat16,int8
    python -m benchmarks.quality --point-maps               # as with a depth model: the pose is then that in the photo

Objects and photos are those of `training.photos.held_out`, the same in every run; they come with their own truth. Of each, in
`benchmarks.quality_measures`, in the object's own frame, without any alignment:

    voxel IoU       of the structure, closed hollows filled, with those that the training calls occupied: their middle is in
                    the object, or less than half a voxel outside
    F-score         of the mesh at 5 % of the object's longest side, 10,000 points on either surface; and Chamfer distance, in
                    percent of that side
    PSNR, SSIM      of the splat, on white, against the object in its true colours: from four views, none of them the photo's
    rotation        error of the pose, in degrees; elevation: that of the camera's height alone

The control is the same with another object's photo, the next one's: where a figure is no better than that, the photo was not
looked at. Chamfer distances are medians, all else are means; where nothing came out, the F-score is 0 and the picture white.

A setting is a name of `sam3d_tvm.quality.QUALITIES`, or options of `Pipeline.generate` with + between. The first one, in the
first of the precisions, is run with each of the seeds 0 to `--seeds` - 1, the others with seed 0. What the table of settings
marks by * is worse than all of these: beyond what noise does. Seconds are of all stages, on this machine; run nothing beside it
where they count.
"""

import argparse
import functools
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness import default_console, machine_info, write_json
from benchmarks.quality_measures import (
    chamfer_distance,
    elevation,
    f_score,
    filled,
    mesh_points,
    psnr,
    rotation_error,
    ssim,
    surface_points,
    voxel_iou,
)
from sam3d_tvm.artifacts import compile_artifacts, default_folder
from sam3d_tvm.checks import Failure
from sam3d_tvm.mesh.picture import mesh_picture
from sam3d_tvm.outputs import Result
from sam3d_tvm.overview import masked_photo
from sam3d_tvm.pipeline import OpenModels, Pipeline
from sam3d_tvm.pose import rotation_6d_to_matrix
from sam3d_tvm.quality import QUALITIES
from sam3d_tvm.splat.cameras import Camera, orbit_box
from sam3d_tvm.splat.picture import WHITE, contact_sheet, splat_picture
from sam3d_tvm.tiny import TinySource
from sparse_ops.transform.precision import PRECISIONS

POINTS = 10_000  # on each surface
NEAR = 0.05  # of the longest side, of the F-score
VIEWS, ELEVATION, SIZE = 4, 20.0, 160  # pictures; their cameras' height in degrees; pixels
ON_SHEET, TILE = 12, 200  # objects, and pixels of a picture
QUICK = {"objects": 4, "seeds": 1}

OPTIONS = {name for name, option in inspect.signature(Pipeline.steps).parameters.items() if option.kind is option.KEYWORD_ONLY}

# Figures: name, whether more is better, and what was asked of the mean over all objects.
FIGURES = {
    "voxel IoU": (True, 0.5),
    "F-score": (True, 0.8),
    "Chamfer %": (False, None),
    "PSNR": (True, 20.0),
    "SSIM": (True, None),
    "rotation": (False, None),
    "elevation": (False, None),
}
MEDIANS = ("Chamfer %",)  # which one object without a mesh would make infinite
CUPS_AND_BOWLS = 0.6  # of voxel IoU, asked of these kinds


@dataclass(frozen=True, eq=False)
class Truth:
    """What an object is: its kind; voxels bool [R, R, R]; points float64 [N, 3] of its surface; the length of its longest side;
    pictures uint8 [S, S, 3] from `cameras`; rotation float64 [3, 3] of its pose in the photo."""

    kind: str
    voxels: np.ndarray
    points: np.ndarray
    side: float
    cameras: Sequence[Camera]
    pictures: Sequence[np.ndarray]
    rotation: np.ndarray


def truth_of(example: Any) -> Truth:
    """Of an `Example` of `training.photos`."""
    import torch

    from training.dataset import field_of, occupied
    from training.render import render

    def distance(points: np.ndarray) -> np.ndarray:
        return example.object.distance(torch.from_numpy(points)).numpy()

    half = np.asarray(example.object.half, np.float64)
    # Between those from the front, left, behind and right, so that none is the photo's.
    cameras = orbit_box(-half, half, 2 * VIEWS, ELEVATION)[1::2]
    return Truth(
        example.object.kind,
        occupied(field_of(example.object)),
        surface_points(distance, half, POINTS, np.random.default_rng(0)),
        float(2 * half.max()),
        cameras,
        [render(example.object, example.palette, camera, SIZE)[..., :3] for camera in cameras],
        rotation_6d_to_matrix(np.asarray(example.rotation)),
    )


def measured(result: Result | None, truth: Truth) -> dict[str, float]:
    """The figures of a result, None where no voxel was occupied, against an object."""
    cameras = truth.cameras
    if result is None:
        blank = np.full((SIZE, SIZE, 3), WHITE, np.uint8)
        voxels, points, pictures = np.zeros_like(truth.voxels), np.zeros((0, 3)), [blank for _ in cameras]
        turned = {"rotation": float("nan"), "elevation": float("nan")}
    else:
        voxels = filled(result.coords, result.resolution)
        points = mesh_points(result.mesh.vertices, result.mesh.faces, POINTS, np.random.default_rng(0))
        pictures = [np.asarray(splat_picture(result.gaussians, camera, SIZE)) for camera in cameras]
        rotation = result.pose.rotation_matrix[0]
        turned = {
            "rotation": rotation_error(rotation, truth.rotation),
            "elevation": abs(elevation(rotation) - elevation(truth.rotation)),
        }
    pairs = list(zip(pictures, truth.pictures, strict=True))
    return {
        "voxel IoU": voxel_iou(voxels, truth.voxels),
        "F-score": f_score(points, truth.points, NEAR * truth.side),
        "Chamfer %": 100 * chamfer_distance(points, truth.points) / truth.side,
        "PSNR": float(np.mean([psnr(*pair) for pair in pairs])),
        "SSIM": float(np.mean([ssim(*pair) for pair in pairs])),
        **turned,
    }


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Every figure over objects: the mean of those that have it, or the median."""
    found = {}
    for name in FIGURES:
        values = np.array([row[name] for row in rows], float)
        values = values[~np.isnan(values)]
        found[name] = float((np.median if name in MEDIANS else np.mean)(values)) if len(values) else float("nan")
    return found


def options_of(setting: str) -> dict[str, Any]:
    """What `Pipeline.generate` is given for a setting. ValueError for options that it does not have."""
    if setting in QUALITIES:
        return {"quality": setting}
    found = {}
    for option in setting.split("+"):
        name, _, value = option.partition("=")
        if name not in OPTIONS or not value:
            raise ValueError(f"settings: expected {', '.join(QUALITIES)} or options of Pipeline.generate, given {option!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:  # a word
            found[name] = value
    return found


@dataclass(frozen=True, eq=False)
class Run:
    """One setting in one precision with one seed: figures by object, with its photo and with another's, and what they took."""

    setting: str
    precision: str
    seed: int
    rows: Sequence[Mapping[str, float]]
    control: Sequence[Mapping[str, float]]
    seconds: Sequence[float]  # of each object of which there is something, as the next
    evaluations: Sequence[int]  # of both generators

    @property
    def figures(self) -> dict[str, float]:
        return mean_of(self.rows)


def run(
    pipeline: Pipeline,
    examples: Sequence[Any],
    truths: Callable[[int], Truth],
    setting: str,
    seed: int,
    point_maps: bool,
    tell: Callable[[int], None] = lambda done: None,
    on_result: Callable[[int, Result | None], None] = lambda number, result: None,
) -> Run:
    """Generates every object from its photo, and measures it. truths: by number; on_result: told of every result."""
    rows: dict[int, dict[str, float]] = {}
    control: dict[int, dict[str, float]] = {}
    seconds, evaluations, models = [], [], OpenModels(pipeline.artifacts)
    for number, example in enumerate(examples):
        tell(number)
        given = {"pointmap": example.pointmap, "pointmap_axes": "pytorch3d"} if point_maps else {}
        result = None  # what it stays where no voxel is occupied
        with suppress(Failure):
            result = pipeline.generate(
                example.rgba, seed=seed, formats=("ply", "glb"), models=models, **given, **options_of(setting)
            )
        rows[number] = measured(result, truths(number))
        if len(examples) > 1:
            control[number] = measured(result, truths((number - 1) % len(examples)))
        if result is not None:
            seconds.append(sum(result.seconds.values()))
            evaluations.append(sum(made["conditional"] + made["unconditional"] for made in result.evaluations.values()))
        on_result(number, result)
    return Run(setting, pipeline.artifacts.precision, seed, list(rows.values()), list(control.values()), seconds, evaluations)


def by_kind(found: Run, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """The figures of each kind of object."""
    return {
        kind: mean_of([row for row, other in zip(found.rows, kinds, strict=True) if other == kind])
        for kind in sorted(set(kinds))
    }


def worse(name: str, value: float, others: Sequence[float]) -> bool:
    """Whether a figure is worse than all of `others`."""
    more_is_better = FIGURES[name][0]
    return bool(value < min(others) if more_is_better else value > max(others))


def table_of_kinds(first: Run, kinds: Sequence[str], spread: Sequence[Run]) -> Table:
    """Figures by kind, in the mean, by seed, and of the control."""
    shown = _table("object", "number")
    for kind, figures in by_kind(first, kinds).items():
        shown.add_row(kind, str(kinds.count(kind)), *_figures(figures))
    shown.add_section()
    shown.add_row("all", str(len(kinds)), *_figures(first.figures))
    if len(spread) > 1:
        ends = {name: [other.figures[name] for other in spread] for name in FIGURES}
        shown.add_row(f"{len(spread)} seeds, least", "", *_figures({name: min(values) for name, values in ends.items()}))
        shown.add_row(f"{len(spread)} seeds, most", "", *_figures({name: max(values) for name, values in ends.items()}))
    if first.control:
        shown.add_row("photo of another", "", *_figures(mean_of(first.control)))
    return shown


def table_of_settings(runs: Sequence[Run], spread: Sequence[Run]) -> Table:
    """Time, evaluations and figures of every setting and precision, the first one's in the mean of its seeds."""
    shown = _table("setting", "precision", "evaluations", "s an object", "of the time")
    first = _seconds(spread)
    for found in runs:
        of_first = found is runs[0]
        same = list(spread) if of_first else [found]
        seconds = _seconds(same)
        figures = {name: float(np.mean([one.figures[name] for one in same])) for name in FIGURES}
        marked = {
            name: not of_first and worse(name, value, [one.figures[name] for one in spread]) for name, value in figures.items()
        }
        counted = f"{np.mean(found.evaluations):.1f}" if found.evaluations else "-"
        share = f"{100 * seconds / first:.0f} %" if first > 0 else ""
        shown.add_row(found.setting, found.precision, counted, f"{seconds:.2f}", share, *_figures(figures, marked))
    return shown


def _seconds(runs: Sequence[Run]) -> float:
    """What an object takes, the median of each run, in the mean; 0 where there is none."""
    return float(np.mean([np.median(found.seconds) if found.seconds else 0.0 for found in runs]))


def verdicts(first: Run, kinds: Sequence[str], cups_and_bowls: Sequence[str]) -> list[str]:
    """What was asked for, and whether it is reached."""
    found, figures = [], first.figures

    def verdict(text: str, reached: bool) -> None:
        found.append(f"{text}: {'reached' if reached else 'NOT reached'}")

    for name, (_, asked) in FIGURES.items():
        if asked is not None:
            verdict(f"{name} {figures[name]:.3g}, asked for {asked}", figures[name] >= asked)
    cups = [row for row, kind in zip(first.rows, kinds, strict=True) if kind in cups_and_bowls]
    if cups:
        value = mean_of(cups)["voxel IoU"]
        verdict(f"voxel IoU of cups and bowls {value:.3g}, asked for {CUPS_AND_BOWLS}", value >= CUPS_AND_BOWLS)
    if first.control:
        control = mean_of(first.control)
        same = [name for name in FIGURES if not worse(name, control[name], [figures[name]]) and not np.isnan(figures[name])]
        verdict(f"with another object's photo {'all is worse' if not same else 'no worse: ' + ', '.join(same)}", not same)
    return found


def _table(*columns: str) -> Table:
    shown = Table(title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate((*columns, *FIGURES)):
        shown.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return shown


def _figures(values: Mapping[str, float], marked: Mapping[str, bool] | None = None) -> list[str]:
    forms = {"PSNR": ".1f", "rotation": ".1f", "elevation": ".1f", "Chamfer %": ".2f"}
    return [
        ("-" if np.isnan(values[name]) else format(values[name], forms.get(name, ".3f")))
        + ("*" if marked is not None and marked[name] else "")
        for name in FIGURES
    ]


def sheet_row(example: Any, truth: Truth, result: Result | None) -> list[Image.Image]:
    """Pictures of an object: the photo, the truth from the first view, the splat from all, the mesh from the first."""
    photo = Image.new("RGB", (TILE, TILE), WHITE)
    seen = masked_photo(example.rgba, TILE, TILE)
    photo.paste(seen, ((TILE - seen.width) // 2, (TILE - seen.height) // 2))
    row = [photo, Image.fromarray(truth.pictures[0]).resize((TILE, TILE), Image.Resampling.BICUBIC)]
    if result is None:
        return row + [Image.new("RGB", (TILE, TILE), WHITE)] * (VIEWS + 1)
    row += [splat_picture(result.gaussians, camera, TILE) for camera in truth.cameras]
    return [*row, mesh_picture(result.mesh, truth.cameras[0], TILE)]


def compiled(weights: Path | None, artifacts: Path | None, precision: str, console: Console) -> Pipeline:
    """The pipeline of the weights in a folder, by default those of the package; artifacts of a precision each."""
    source = TinySource(weights)
    folder = default_folder(source.label(precision)) if artifacts is None else artifacts / precision

    def tell(name: str, done: int, total: int) -> None:
        if done < total:
            console.print(f"compiling {name} in {precision}, model {done + 1} of {total}", highlight=False)

    return Pipeline(compile_artifacts(source, folder, precision, on_model=tell))


def held_out(count: int, point_maps: bool) -> list[Any]:
    """Objects that were never trained on, with their photos."""
    from training.photos import held_out

    return [held_out(number, point_maps) for number in range(count)]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The trained tiny model on objects that it was never trained on.")
    parser.add_argument("--objects", type=int, metavar="N", help="how many; 100 by default")
    parser.add_argument("--seeds", type=int, metavar="N", help="of the first setting, for its spread; 1 by default")
    names = ", ".join(QUALITIES)
    parser.add_argument("--settings", "--quality", default="exact", metavar="NAME,NAME", help=f"{names}, or options")
    parser.add_argument("--precisions", default="float32", metavar="NAME,NAME", help="of " + ", ".join(PRECISIONS))
    parser.add_argument("--point-maps", action="store_true", help="photos come with point maps")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="in place of those of the package")
    parser.add_argument("--artifacts", type=Path, metavar="FOLDER", help="for compiled models, a folder of it a precision")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help=f"write pictures of the first {ON_SHEET} objects as .png")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, command and all figures to FILE")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK['objects']} objects, unless --objects says how many")
    given = parser.parse_args(arguments)
    for name, usual in (("objects", 100), ("seeds", 1)):
        if getattr(given, name) is None:
            setattr(given, name, QUICK[name] if given.quick else usual)
        if getattr(given, name) < 1:
            parser.error(f"--{name}: expected at least 1, given {getattr(given, name)}")
    given.settings, given.precisions = given.settings.split(","), given.precisions.split(",")
    if unknown := [name for name in given.precisions if name not in PRECISIONS]:
        parser.error(f"--precisions: expected some of {', '.join(PRECISIONS)}, given {', '.join(map(repr, unknown))}")
    try:
        for setting in given.settings:
            options_of(setting)
    except ValueError as error:
        parser.error(f"--{error}")
    if given.sheet is not None and given.sheet.suffix != ".png":
        parser.error(f"--sheet: expected a name that ends in .png, given {given.sheet}")
    return given


def main(arguments: list[str] | None = None, console: Console | None = None) -> int:
    given, console = parse(arguments), console or default_console()
    machine = machine_info(given.quick)
    examples = held_out(given.objects, given.point_maps)
    kinds = [example.object.kind for example in examples]
    truths = functools.cache(lambda number: truth_of(examples[number]))
    runs, spread, pictures = [], [], {}

    for precision in given.precisions:
        pipeline = compiled(given.weights, given.artifacts, precision, console)
        for setting in given.settings:
            for seed in range(given.seeds if not runs else 1):
                first = not spread

                def keep(number: int, result: Result | None, first=first) -> None:
                    if first and given.sheet is not None and number < ON_SHEET:
                        pictures[number] = sheet_row(examples[number], truths(number), result)

                name = f"{setting}, {precision}, seed {seed}"
                with console.status(name) as status:
                    tell = functools.partial(_tell, status, name, len(examples))
                    found = run(pipeline, examples, truths, setting, seed, given.point_maps, tell, keep)
                if not runs or (found.setting, found.precision) == (runs[0].setting, runs[0].precision):
                    spread.append(found)
                if seed == 0:
                    runs.append(found)

    command = shlex.join(["python", "-m", "benchmarks.quality", *(sys.argv[1:] if arguments is None else arguments)])
    console.print(f"{command}: {machine['cpu']}, {machine['cores']} cores, {machine['date']}", highlight=False, soft_wrap=True)
    console.print(table_of_kinds(runs[0], kinds, spread), highlight=False)
    console.print(table_of_settings(runs, spread), highlight=False)
    asked = verdicts(runs[0], kinds, _cups_and_bowls())
    for line in asked:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if given.sheet is not None:
        rows = [pictures[number] for number in sorted(pictures)]
        given.sheet.absolute().parent.mkdir(parents=True, exist_ok=True)
        contact_sheet([picture for row in rows for picture in row], len(rows[0])).save(given.sheet)
        console.print(f"wrote {given.sheet}", highlight=False)
    if given.json is not None:
        report = {"command": command, "machine": machine, "kinds": kinds, "point_maps": given.point_maps, "asked": asked}
        report["by_kind"] = by_kind(runs[0], kinds)
        report["runs"] = [_as_json(found) for found in [*spread, *runs[1:]]]
        write_json(given.json, report)
    return 0


def _tell(status: Any, name: str, count: int, number: int) -> None:
    status.update(f"{name}: object {number + 1} of {count}")


def _cups_and_bowls() -> Sequence[str]:
    from training.shapes import CUPS_AND_BOWLS as kinds

    return kinds


def _as_json(found: Run) -> dict[str, Any]:
    """Numbers that are none, or infinite, as None."""

    def finite(values: Mapping[str, float]) -> dict[str, float | None]:
        return {name: value if np.isfinite(value) else None for name, value in values.items()}

    return {
        "setting": found.setting,
        "precision": found.precision,
        "seed": found.seed,
        "evaluations": found.evaluations,
        "seconds": found.seconds,
        "figures": finite(found.figures),
        "control": finite(mean_of(found.control)) if found.control else None,
        "objects": [finite(row) for row in found.rows],
    }


if __name__ == "__main__":
    sys.exit(main())
