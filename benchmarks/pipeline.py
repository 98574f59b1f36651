"""The whole pipeline with random weights against PyTorch with spconv, stage by stage: seconds and peak memory.

    python -m benchmarks.pipeline [--size full|random-tiny] [--precision float32|bfloat16|int8] [--artifacts FOLDER]
                                  [--blocks N] [--stages NAME,NAME] [--skip-reference | --only-reference] [--json FILE]
                                  [--quality exact|normal|draft]

"full" has the sizes of SAM-3D-Objects, 25 + 25 steps, and a nut of 19,072 voxels in the second half, as random weights make no
object. Of a generator's steps a few are measured, and all are counted; the table says of every figure what was measured.

    ours         the compiled models of --artifacts, or of a folder in the user's cache, where models that are missing are
                 compiled first, which at full size takes long; three steps of each generator, see `sam3d_tvm.bench`
    reference    `benchmarks.pipeline_reference` in the same precision, bfloat16 by torch's autocast, float32 where ours is
                 int8; a process for every stage;
                 of both generators one velocity in transformers of 1 and of --blocks blocks, which are all alike: the
                 difference tells of those left out
    start-up     from the start of a process until models are ready: that of the first stage, and that of the first step

--quality is that of `generate`, of ours alone: the reference always evaluates every step, as "exact" does.
--stages picks rows by name; of ours all are run, as each takes what the one before returned. Results are not compared here, but
in `benchmarks.components`, `benchmarks.slat` and `benchmarks.decoders`, for the same models.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from sam3d_tvm.artifacts import PIPELINE, Artifacts
from sam3d_tvm.bench import MEASURED_STEPS
from sam3d_tvm.config import preset
from sam3d_tvm.pipeline import Pipeline
from sam3d_tvm.quality import QUALITIES

from .harness import default_console, machine_info, write_json

ROOT = Path(__file__).parents[1]
STAGES = (
    "image",
    "condition of the structure",
    "structure",
    "voxels",
    "condition of the latents",
    "latents",
    "gaussians",
    "mesh",
)
VOXELS = {"full": 19_072, "random-tiny": 2_000}  # the first ones of the nut
BLOCKS = 3
START_UPS = 3
RATIOS = {"float32": 3.0, "bfloat16": 6.0, "int8": None}  # asked for at full size, as the next two
PEAK_BYTES = 8 << 30
START_UP_SECONDS = 5.0
BFLOAT16_NOTES = (
    "  reference: bfloat16 by torch's autocast; convolutions in 3D stay float32, as spconv has no bfloat16 on a CPU, and torch",
    "    only one thread for it; without bfloat16 instructions torch is slower in it than in float32: compare with that, too",
)

# What runs in processes of its own has nothing of the benchmarks in its memory.
OURS = """
import json, sys
from dataclasses import asdict
from sam3d_tvm import Pipeline
from sam3d_tvm.bench import measure
from sam3d_tvm.occupancy import demo_occupancy
artifacts, coords = Pipeline.from_artifacts(sys.argv[1]).artifacts, demo_occupancy()[:int(sys.argv[2])]
costs = measure(artifacts, coords, quality=sys.argv[3])
print(json.dumps([asdict(cost) for cost in costs]))
"""
START_UP = """
import sys
from sam3d_tvm import Pipeline
from sam3d_tvm.models import MODELS
print("imported", flush=True)
artifacts = Pipeline.from_artifacts(sys.argv[1]).artifacts
for name in ("ss_condition_embedder", "ss_generator"):
    config = getattr(artifacts.config, name)
    model = MODELS[name].open(artifacts.load(name), config)
    print(name, flush=True)
"""


def printed(*arguments: str) -> list[tuple[float, str]]:
    """The lines that a new Python prints, each with the seconds since its start. RuntimeError with the last words of one that
    fails."""
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
        ) as process,
    ):
        lines = [(time.perf_counter() - start, line.rstrip()) for line in process.stdout]
        if code := process.wait():
            errors.seek(0)
            last = (errors.read().splitlines() or ["killed, for memory perhaps" if code == -9 else ""])[-1]
            raise RuntimeError(f"exit code {code}: {last}")
    return lines


def ours(folder: Path, voxels: int, quality: str) -> list[dict]:
    """The rows of our stages."""
    *_, (_, line) = printed("-c", OURS, str(folder), str(voxels), quality)
    return [row | {"measured": _measured(row)} for row in json.loads(line)]


def _measured(row: Mapping) -> str:
    """What was measured of a row of ours, and what is counted."""
    if row["evaluations"] is None:
        return "whole"
    evaluated, guided = row["evaluations"]
    steps = f"{MEASURED_STEPS} of {row['steps']} steps"
    return steps if evaluated == row["steps"] else f"{steps}, {evaluated} evaluated, {guided} guided"


def reference(stage: str, precision: str, config: Mapping, blocks: int, voxels: int) -> dict:
    """The row of a stage of the reference."""
    arguments = (stage, precision, str(blocks), str(voxels), json.dumps(config))
    *_, (_, line) = printed("-m", "benchmarks.pipeline_reference", *arguments)
    return json.loads(line)


def start_ups(folder: Path) -> dict[str, list[float]]:
    """Seconds until everything is imported, and until each of the first two models is ready, of several processes."""
    found: dict[str, list[float]] = {}
    for _ in range(START_UPS):
        for seconds, name in printed("-c", START_UP, str(folder)):
            found.setdefault(name, []).append(seconds)
    return found


def in_all(rows: Sequence[Mapping], stages: Sequence[str]) -> dict | None:
    """Of all `stages` one after the other; None where one of them is missing. The reference has no stage "image"."""
    if not rows or set(stages) - {row["stage"] for row in rows} - {"image"}:
        return None
    peaks = [row["peak_bytes"] for row in rows if row["peak_bytes"] is not None]
    seconds = sum(row["total_seconds"] for row in rows)
    return {"stage": "in all", "total_seconds": seconds, "peak_bytes": max(peaks, default=None), "measured": ""}


def table(report: Mapping) -> Table:
    """The rows of both sides beside each other."""
    shown = Table(title="benchmarks.pipeline", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("stage", no_wrap=True)
    for column in ("ours s", "reference s", "ratio", "our MiB", "reference MiB"):
        shown.add_column(column, justify="right")
    shown.add_column("measured of ours")
    shown.add_column("of the reference")
    sides = [{row["stage"]: row for row in (*report[side], report["in_all"][side]) if row} for side in ("ours", "reference")]
    for stage in (*report["stages"], "in all"):
        if stage == "in all":
            shown.add_section()
        pair = [side.get(stage) for side in sides]
        values = [row and row["total_seconds"] for row in pair]
        peaks = [row and row["peak_bytes"] for row in pair]
        shown.add_row(
            stage,
            *(_number(value, ".2f") for value in values),
            f"{values[1] / values[0]:.2f}x" if all(values) else "",
            *(_number(peak and peak / 2**20, ",.0f") for peak in peaks),
            *(row["measured"] if row else "" for row in pair),
        )
    return shown


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def verdicts(report: Mapping) -> list[str]:
    """What was asked for, and whether it is reached."""
    found, (mine, theirs) = [], (report["in_all"][side] for side in ("ours", "reference"))

    def verdict(text: str, reached: bool) -> None:
        found.append(f"{text}: {'reached' if reached else 'not reached'}")

    if mine and theirs:
        ratio, target = theirs["total_seconds"] / mine["total_seconds"], RATIOS[report["precision"]]
        if target is None:
            found.append(f"{report['precision']}: {ratio:.2f}x the reference in float32, in all")
        else:
            verdict(f"{report['precision']}: {ratio:.2f}x the reference in all, asked for {target}x", ratio >= target)
    if mine and mine["peak_bytes"] is not None:
        peak = mine["peak_bytes"]
        verdict(f"our peak: {peak / 2**30:.2f} GiB, asked for at most {PEAK_BYTES >> 30}", peak <= PEAK_BYTES)
    if report["start_up_seconds"]:
        seconds = statistics.median(report["start_up_seconds"]["ss_generator"])
        verdict(f"start-up: {seconds:.1f} s, asked for at most {START_UP_SECONDS:.0f} s", seconds <= START_UP_SECONDS)
    return found


def notes(report: Mapping) -> list[str]:
    """What the figures are of."""
    found = [f"{report['size']}, {report['voxels']:,} voxels in the second half; seconds are of all steps, by extrapolation:"]
    if report["ours"]:
        found.append("  ours: each further step as the one of its kind that was measured, with guidance and without")
        if report["quality"] != "exact":
            found.append(f"  ours: quality {report['quality']}, the reference exact; forecast velocities count as 0 s")
        found.append("  ours: weights are mapped from files within the time of a stage, and read as they are used")
    if report["reference"]:
        found += [
            "  reference: a call is the median of 3; one a step, two with guidance; blocks left out count as those measured",
            "    beyond the first, their weights are added to the peak; weights are in memory before the time begins",
            *(BFLOAT16_NOTES if report["precision"] == "bfloat16" else ()),
            "  reference: on all cores; spconv, too, with its default threads, a data race on a CPU: as fast as people",
            "    have it, but its results are wrong then, and are not compared here",
            "  reference: its process holds TVM as well, some 180 MiB, which its modules import; it has no stage for the image",
            "  both: it is our code that makes Gaussians and the mesh of the features that decoders return",
        ]
    if report["start_up_seconds"]:
        imported, first, flow = (statistics.median(seconds) for seconds in report["start_up_seconds"].values())
        text = f"  start-up: imported after {imported:.1f} s, the first stage's model ready after {first:.1f} s, that of "
        found.append(text + f"the first step after {flow:.1f} s; median of {START_UPS}, files may be in the system's cache")
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The whole pipeline against PyTorch with spconv, stage by stage.")
    parser.add_argument("--size", choices=VOXELS, default="full")
    parser.add_argument("--precision", choices=RATIOS, default="float32", help="of both; the reference has no int8")
    parser.add_argument("--quality", choices=QUALITIES, default="exact", help="of ours, as of generate")
    parser.add_argument("--artifacts", type=Path, metavar="FOLDER", help="compiled models; a new folder is filled")
    parser.add_argument(
        "--blocks", type=int, default=BLOCKS, metavar="N", help=f"of the reference's flows; {BLOCKS} by default"
    )
    parser.add_argument("--stages", metavar="NAME,NAME", help="of " + ", ".join(STAGES))
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument("--skip-reference", action="store_true")
    sides.add_argument("--only-reference", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows to FILE")
    given = parser.parse_args(arguments)
    given.stages = STAGES if given.stages is None else tuple(given.stages.split(","))
    if unknown := [name for name in given.stages if name not in STAGES]:
        parser.error(f"--stages: expected some of {', '.join(STAGES)}, given {', '.join(map(repr, unknown))}")
    if given.blocks < 2:
        parser.error(f"--blocks: expected at least 2, as the difference to 1 is measured, given {given.blocks}")
    return given


def compiled(given: argparse.Namespace, console: Console) -> Artifacts:
    """Those of --artifacts, or of random weights, compiled where they are missing. ValueError for a folder that is no good, and
    for artifacts of another precision or size."""

    def tell(name: str, done: int, total: int) -> None:
        if done < total:
            console.print(f"compiling {name}, model {done + 1} of {total}, which takes minutes at full size", highlight=False)

    if given.artifacts is None or not (given.artifacts / PIPELINE).is_file():
        return Pipeline.from_preset(given.size, given.artifacts, precision=given.precision, on_model=tell).artifacts
    artifacts = Artifacts(given.artifacts)
    if artifacts.precision != given.precision:
        raise ValueError(f"--precision: expected {artifacts.precision}, as the artifacts have, given {given.precision}")
    width, expected = (config.ss_generator.model_channels for config in (artifacts.config, preset(given.size)))
    if width != expected:
        raise ValueError(f"--artifacts: expected {expected} channels of size {given.size}, given a structure flow of {width}")
    return artifacts


def main(arguments: list[str] | None = None, console: Console | None = None) -> int:
    given, console = parse(arguments), console or default_console()
    voxels, failures = VOXELS[given.size], []
    report = {"machine": machine_info(quick=given.size == "random-tiny")}
    report |= {"size": given.size, "precision": given.precision, "voxels": voxels, "stages": given.stages}
    report["quality"] = given.quality
    report |= {"ours": [], "reference": [], "start_up_seconds": {}}

    def run(name: str, call, *inputs):
        """What the call returns; a process that fails leaves the others be."""
        console.print(f"measuring {name} ...", highlight=False)
        try:
            return call(*inputs)
        except RuntimeError as error:
            failures.append(f"{name}: {error}")
            return None

    config = preset(given.size)
    if not given.only_reference:
        artifacts = compiled(given, console)
        config, folder = artifacts.config, artifacts.folder.absolute()
        report["start_up_seconds"] = run("start-up", start_ups, folder) or {}
        rows = run("ours", ours, folder, voxels, given.quality) or []
        report["ours"] = [row for row in rows if row["stage"] in given.stages]
    if not given.skip_reference:
        stages = [stage for stage in given.stages if stage != "image"]
        options = given.precision, config.to_json(), given.blocks, voxels
        rows = [run(f"reference: {stage}", reference, stage, *options) for stage in stages]
        report["reference"] = [row for row in rows if row]
    report["in_all"] = {side: in_all(report[side], given.stages) for side in ("ours", "reference")}
    report["failures"] = failures

    machine = report["machine"]
    console.print(f"\n{machine['cpu']}, {machine['cores']} cores, load average {machine['load_average']}", highlight=False)
    if (machine["load_average"] or 0) > machine["cores"] / 2:
        console.print("other work was running at the start: figures are not to be relied on", highlight=False)
    console.print(table(report), highlight=False)
    for line in (*notes(report), *(verdicts(report) if given.size == "full" else ())):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for failure in failures:
        console.print(f"FAILED {failure}", style="red", highlight=False, soft_wrap=True, markup=False)
    if given.json:
        write_json(given.json, report)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
