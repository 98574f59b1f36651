"""The command line: `sam3d-tvm demo`, `sam3d-tvm validate` and `sam3d-tvm info`.

Only what every command needs is imported here; TVM is imported by the commands, after `--threads` has been looked at.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

CONDITION_TOKENS = 257  # as many as an image of 16 x 16 patches gives
BAD_OPTIONS, FAILED, STOPPED = 2, 1, 130  # exit codes
USAGE_ERROR = typer.BadParameter.__base__  # click's, of which newer versions of typer bring a copy of their own

app = typer.Typer(
    help="SAM-3D-Objects in Apache TVM.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0, or 2 for options that make no sense, 1 for what went wrong later."""
    try:
        code = app(args=None if argv is None else list(argv), prog_name="sam3d-tvm", standalone_mode=False)
    except USAGE_ERROR as error:
        return _fail(error.format_message(), BAD_OPTIONS)
    except ValueError as error:
        return _fail(str(error), BAD_OPTIONS)
    except OSError as error:
        return _fail(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    if code == STOPPED:
        return _fail("stopped", STOPPED)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    """Says what is wrong in one red line."""
    line = " ".join(f"error: {message}".split())
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    return code


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """SAM-3D-Objects in Apache TVM."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("out/demo"),
    steps: Annotated[int, typer.Option(help="Euler steps.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the weights, the condition and the noise.")] = 0,
    guidance: Annotated[float, typer.Option(help="Strength of classifier-free guidance, used up to t = 0.5.")] = 1.0,
    preset: Annotated[str, typer.Option(help="Size of the model: tiny, small or full.")] = "small",
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all cores.")] = None,
) -> None:
    """Samples structured latents on a real occupancy (19,072 voxels) with seeded random weights.

    Writes latents.safetensors and voxels.png, the voxels coloured by latent. Equal options give equal bytes.
    """
    _set_threads(threads)
    console = Console()
    stages = Stages(console)
    with stages.stage("load TVM"):
        import numpy as np

        from sam3d_tvm import files, occupancy, render, sampler
        from sam3d_tvm.components import slat_generator as slat
    # Whatever is wrong with the options is said before the work begins.
    if seed < 0:
        raise ValueError(f"seed: expected an integer of at least 0, given {seed}")
    if not math.isfinite(guidance):
        raise ValueError(f"guidance: expected a finite number, given {guidance}")
    config, strength = slat.preset(preset), sampler.Guidance(guidance)
    times = sampler.flow_schedule(steps)[:-1] * np.float32(slat.TIME_SCALE)
    calls = [2 if strength.applies(t) else 1 for t in times]
    _check_folder(output)

    with stages.stage("compile"):
        vm = slat.compile_model(config)
    with stages.stage("weights"):
        generator = slat.SlatGenerator(config, slat.seeded_state(config, seed), vm)
        coords = occupancy.demo_occupancy()
        condition, noise = (np.random.default_rng([seed, stream]) for stream in (1, 2))
        cond = condition.standard_normal((1, CONDITION_TOKENS, config.cond_channels), dtype=np.float32)
        x = noise.standard_normal((len(coords), config.in_channels), dtype=np.float32)
    with stages.stage("prepare"):
        plan = generator.prepare(coords, cond)
    with stages.stage("sampling", progress=True), _progress(console, calls) as on_step:
        latents = generator.sample_plan(plan, x, steps, strength, on_step=on_step)
    with stages.stage("picture"):
        picture = render.voxel_picture(coords, latents)
    with stages.stage("files"):
        settings = {"preset": preset, "seed": str(seed), "steps": str(steps), "guidance": str(guidance)}
        arrays, image = output / "latents.safetensors", output / "voxels.png"
        files.save_safetensors(arrays, {"coords": coords, "latents": latents}, settings)
        files.save_png(image, picture)

    console.print(stages.table({"sampling": f"{steps} steps, {sum(calls)} calls of the model"}))
    console.print(f"{len(coords):,} voxels, {len(plan.low_coords):,} in the transformer; random weights: no real shape")
    for path in (arrays, image):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def validate(
    component: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    size: Annotated[
        str, typer.Option(help="tiny, or full: the size of SAM-3D-Objects, which takes minutes and 12 GB.")
    ] = "tiny",
    precision: Annotated[
        str, typer.Option(help="float32 or bfloat16; PyTorch computes in float32 in either case.")
    ] = "float32",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all cores.")] = None,
) -> int:
    """Compares every compiled component with PyTorch: shapes, errors, time. Weights are random.

    Exits with 1 when a component fails. Needs torch.
    """
    _set_threads(threads)
    from json import dumps

    from sam3d_tvm.validate import validate as verdicts

    found = []
    with Console(stderr=True).status("validate ...") as status:
        for verdict in verdicts(component or (), size, precision, lambda message: status.update(f"{message} ...")):
            found.append(verdict)
    if json:
        typer.echo(dumps([verdict.as_json() for verdict in found], indent=1))
    else:
        Console().print(_verdict_table(found))
    return 0 if all(verdict.ok for verdict in found) else FAILED


def _verdict_table(verdicts: Sequence) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("component")
    for column in ("shapes", "max error / scale", "relative L2", "PyTorch", "ours", "ratio", ""):
        table.add_column(column, justify="right")
    for verdict in verdicts:
        table.add_row(
            verdict.component,
            "equal" if verdict.shapes_equal else "differ",
            f"{verdict.max_error:.1e} < {verdict.max_error_bound:.0e}",
            f"{verdict.relative_l2:.1e} < {verdict.relative_l2_bound:.0e}",
            f"{verdict.torch_seconds * 1e3:.1f} ms",
            f"{verdict.seconds * 1e3:.1f} ms",
            f"{verdict.ratio:.2f}x",
            "ok" if verdict.ok else "FAILED",
            style=None if verdict.ok else "red",
        )
    return table


@app.command()
def info(threads: Annotated[int | None, typer.Option(help="CPU threads; by default all cores.")] = None) -> None:
    """Versions, and what kernels are built for on this machine."""
    _set_threads(threads)
    import platform
    from importlib.metadata import version

    import tvm

    from sam3d_tvm import __version__
    from tir_kernels.isa import Isa, host_target

    isa = Isa.of()
    rows = {
        "sam3d-tvm": __version__,
        "Python": platform.python_version(),
        "apache-tvm": tvm.__version__,
        "apache-tvm-ffi": version("apache-tvm-ffi"),
        "numpy": version("numpy"),
        "target": str(host_target()),
        "instruction set": f"{isa.name}: {isa.registers} registers of {isa.lanes} float32 lanes"
        + (", bfloat16 dot product" if isa.bf16_dot else ""),
        "threads": os.environ["TVM_NUM_THREADS"],
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value, style=None)
    Console().print(table, highlight=False, markup=False, soft_wrap=True)


class Stages:
    """The parts of a run, and how long each took."""

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, progress: bool = False) -> Iterator[None]:
        """Times a part; says that it is going on unless it shows its `progress` itself."""
        start = time.perf_counter()
        if progress:
            yield
        else:
            with self.console.status(f"{name} ..."):
                yield
        self.seconds[name] = time.perf_counter() - start

    def table(self, notes: dict[str, str]) -> Table:
        """Seconds of every stage, and in all; `notes` stand beside their stage."""
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("stage")
        table.add_column("seconds", justify="right")
        table.add_column("")
        for name, seconds in self.seconds.items():
            table.add_row(name, f"{seconds:.2f}", notes.get(name, ""))
        table.add_section()
        table.add_row("in all", f"{sum(self.seconds.values()):.2f}", "")
        return table


@contextmanager
def _progress(console: Console, calls: Sequence[int]) -> Iterator[Callable]:
    """A bar over the calls of the model, as a step with guidance takes twice the time; yields what to call per step."""
    columns = (
        TextColumn("sampling"),
        BarColumn(),
        TextColumn("step {task.fields[step]} of {task.fields[steps]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("sampling", total=sum(calls), step=0, steps=len(calls))
        yield lambda step: progress.update(task, advance=calls[step.index], step=step.index + 1)


def _set_threads(threads: int | None) -> None:
    """Before TVM starts its pool. ValueError below 1."""
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"threads: expected an integer of at least 1, given {threads}")
    os.environ["TVM_NUM_THREADS"] = str(threads)


def _check_folder(path: Path) -> None:
    """ValueError if something on the way to `path` is no folder."""
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise ValueError(f"output: expected a folder, given {str(path)!r}, where {str(part)!r} is a file")
            return


if __name__ == "__main__":
    sys.exit(main())
