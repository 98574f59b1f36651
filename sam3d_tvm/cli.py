"""The command line: `sam3d-tvm generate`, `compile`, `view`, `validate`, `bench`, `info` and `demo`.

Only what every command needs is imported here; TVM is imported by the commands, after `--threads` has been looked at.
"""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sam3d_tvm import console as shown
from sam3d_tvm.tvm_without_torch import import_tvm

BAD_OPTIONS, FAILED, STOPPED = 2, 1, 130  # exit codes
USAGE_ERROR = typer.BadParameter.__base__  # click's, of which newer versions of typer bring a copy of their own
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

app = typer.Typer(
    help="SAM-3D-Objects in Apache TVM.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Checkpoint folder with pipeline.yaml, as published.", envvar="SAM3D_CHECKPOINT")
]
Artifacts = Annotated[
    Path | None, typer.Option(help="Folder of the compiled models; alone, what was compiled before.", envvar="SAM3D_ARTIFACTS")
]
Preset = Annotated[str | None, typer.Option(help="Random weights in place of a checkpoint: tiny or full.")]
Precision = Annotated[str | None, typer.Option(help="float32, which is the default, or bfloat16 or float16 inside the models.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default all cores.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show estimates, times of all stages, and warnings.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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
    shown.say_error(message)
    return code


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """SAM-3D-Objects in Apache TVM."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def generate(
    image: Annotated[Path, typer.Argument(help="A photo: PNG, JPEG, ...; its alpha channel is the mask if none is given.")],
    masks: Annotated[list[Path] | None, typer.Argument(help="A mask for each object, of the photo's size.")] = None,
    output: Output = Path("out"),
    checkpoint: Checkpoint = None,
    artifacts: Artifacts = None,
    preset: Preset = None,
    pointmap: Annotated[Path | None, typer.Option(help="A position in space for each pixel, .npy or .npz.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 42,
    steps: Annotated[int | None, typer.Option(help="Of both generators; by default what the checkpoint says.")] = None,
    slat_steps: Annotated[int | None, typer.Option(help="Of the structured latents alone.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Strength for the structure.")] = None,
    slat_guidance: Annotated[float | None, typer.Option(help="Strength for the structured latents.")] = None,
    shortcut: Annotated[bool, typer.Option("--shortcut", help="A structure in few steps, without guidance.")] = False,
    formats: Annotated[str, typer.Option(help="Names with commas between: ply, html, ply4, glb, mesh.ply.")] = "ply,glb",
    stage1_only: Annotated[bool, typer.Option("--stage1-only", help="Voxels and pose alone.")] = False,
    precision: Precision = None,
    threads: Threads = None,
    max_memory: Annotated[str | None, typer.Option(help="Refuse what is estimated to take more: 8G, 500M.")] = None,
    verbose: Verbose = False,
) -> None:
    """One photo and a mask to a Gaussian splat and a mesh; with several masks also a scene of all objects.

    Writes splat.ply, mesh.glb, structure.safetensors, pose.json and views.png. Equal options give equal bytes.
    """
    _begin(threads)
    limit, names = _bytes(max_memory), [name.strip() for name in formats.split(",") if name.strip()]
    _check_folder(output)
    console = Console()
    with ExitStack() as stack:
        stack.enter_context(shown.without_warnings(verbose))
        tell = stack.enter_context(shown.bars(console))
        from sam3d_tvm.checks import check_size
        from sam3d_tvm.outputs import check_formats, save_scene
        from sam3d_tvm.photo.images import load_pointmap, load_rgba

        # What is wrong with the input is said before models are compiled.
        check_formats(names)
        for name, value, least in (("seed", seed, 0), ("steps", steps, 1), ("slat_steps", slat_steps, 1)):
            check_size(name, least if value is None else value, least)
        for mask in masks or [None]:
            load_rgba(image, mask)
        if pointmap is not None:
            load_pointmap(pointmap)
        pipeline = _pipeline(checkpoint, artifacts, preset, precision, tell)
        options = {
            "pointmap": pointmap,
            "seed": seed,
            "steps": steps,
            "slat_steps": slat_steps,
            "guidance": guidance,
            "slat_guidance": slat_guidance,
            "shortcut": shortcut,
            "formats": names,
            "stage1_only": stage1_only,
            "max_memory": limit,
            "on_progress": lambda progress: tell(progress.stage, progress.done, progress.total),
        }
        if masks and len(masks) > 1:
            results = pipeline.generate_scene(image, masks, **options)
        else:
            results = [pipeline.generate(image, masks[0] if masks else None, **options)]
        tell("files", 0, 1)
        written = save_scene(results, output, names) if len(results) > 1 else results[0].save(output, names)
        tell("files", 1, 1)
    if verbose:
        console.print(f"artifacts in {pipeline.artifacts.folder}", markup=False, highlight=False, soft_wrap=True)
        estimate = pipeline.memory(max(len(result.coords) for result in results), stage1_only)
        console.print(shown.pairs_table({name: f"{value / 2**30:.2f} GiB estimated" for name, value in estimate.items()}))
        for result in results:
            console.print(shown.seconds_table(result.seconds))
    for result in results:
        console.print(_summary(result), highlight=False)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _summary(result) -> str:
    parts = [f"{len(result.coords):,} voxels"]
    if result.gaussians is not None:
        parts.append(f"{len(result.gaussians):,} Gaussians")
    if result.mesh is not None:
        watertight = "" if result.mesh.is_watertight else "not "
        parts.append(f"a mesh of {len(result.mesh.faces):,} triangles, {watertight}watertight")
    return ", ".join(parts)


@app.command()
def demo(output: Output = Path("out/demo"), seed: Annotated[int, typer.Option(help="Of the noise.")] = 42) -> None:
    """Everything at a tiny size, with random weights, on a photo that comes along: a cup of coffee.

    The pictures show what a splat and a mesh look like, not a model's skill. The first run compiles, which takes minutes.
    """
    from importlib import resources

    data = resources.files("sam3d_tvm") / "data"
    with resources.as_file(data / "coffee.png") as image, resources.as_file(data / "coffee_mask.png") as mask:
        generate(image, [mask], output, preset="tiny", seed=seed, formats="ply,html,glb")


@app.command("compile")
def compile_(
    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint folder with pipeline.yaml, as published.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the compiled models.")] = None,
    preset: Preset = None,
    precision: Precision = None,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Compiles the models of a checkpoint for this CPU, once. Needs torch; generating does not."""
    _begin(threads)
    if output is not None:
        _check_folder(output)
    console = Console()
    with shown.without_warnings(verbose), shown.bars(console) as tell:
        if checkpoint is None and preset is None:
            raise ValueError("checkpoint: expected a checkpoint folder, or --preset, given neither")
        pipeline = _pipeline(checkpoint, output, preset, precision, tell)
    rows = {name: f"{pipeline.artifacts.weight_bytes(name) / 2**20:,.1f} MiB" for name in pipeline.config.models}
    console.print(shown.pairs_table(rows), highlight=False)
    console.print(f"compiled into {pipeline.artifacts.folder}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def view(
    splat: Annotated[Path, typer.Argument(help="A Gaussian splat, .ply.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; by default that of the splat.")] = None,
    views: Annotated[int, typer.Option(help="Pictures from around the object.")] = 8,
    size: Annotated[int, typer.Option(help="Pixels of a picture along each side.")] = 512,
) -> None:
    """Pictures of a splat, and one HTML file that shows it in any browser, without a network."""
    from sam3d_tvm.checks import check_size
    from sam3d_tvm.png import save_png
    from sam3d_tvm.splat.cameras import orbit_box
    from sam3d_tvm.splat.gaussians import load_splat
    from sam3d_tvm.splat.picture import contact_sheet, splat_picture
    from sam3d_tvm.splat.viewer import write_viewer

    check_size("views", views, 1)
    check_size("size", size, 16)
    folder = splat.parent if output is None else output
    _check_folder(folder)
    console = Console()
    gaussians = load_splat(splat)
    pictures = []
    with shown.bars(console) as tell:
        for number, camera in enumerate(orbit_box(*gaussians.bounds, views)):
            tell("views", number, views)
            pictures.append(splat_picture(gaussians, camera, size))
        tell("views", views, views)
    written = [folder / f"{splat.stem}_view{number}.png" for number in range(views)]
    for path, picture in zip(written, pictures, strict=True):
        save_png(path, picture)
    save_png(sheet := folder / f"{splat.stem}_views.png", contact_sheet(pictures, min(views, 4)))
    write_viewer(page := folder / f"{splat.stem}.html", gaussians, splat.name)
    for path in (*written, sheet, page):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def validate(
    component: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    size: Annotated[
        str, typer.Option(help="tiny, or full: the size of SAM-3D-Objects, which takes minutes and 12 GB.")
    ] = "tiny",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; PyTorch computes in float32 in any case.")
    ] = "float32",
    json: Json = False,
    threads: Threads = None,
) -> int:
    """Compares every compiled component with PyTorch: shapes, errors, time. Weights are random.

    Exits with 1 when a component fails. Needs torch.
    """
    _begin(threads)
    from json import dumps

    from sam3d_tvm.validate import validate as verdicts

    found = []
    with Console(stderr=True).status("validate ...") as status:
        for verdict in verdicts(component or (), size, precision, lambda message: status.update(f"{message} ...")):
            found.append(verdict)
    if json:
        typer.echo(dumps([verdict.as_json() for verdict in found], indent=1))
    else:
        Console().print(shown.verdict_table(found))
    return 0 if all(verdict.ok for verdict in found) else FAILED


@app.command()
def bench(
    checkpoint: Checkpoint = None,
    artifacts: Artifacts = None,
    preset: Preset = None,
    precision: Precision = None,
    own_voxels: Annotated[
        bool, typer.Option("--own-voxels", help="Those that the structure comes to, in place of a nut of 19,072.")
    ] = False,
    json: Json = False,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Time and peak memory of every stage: three steps of each generator are measured, all are counted."""
    _begin(threads)
    from dataclasses import asdict
    from json import dumps

    console = Console(stderr=json)
    with shown.without_warnings(verbose):
        from sam3d_tvm.bench import measure, total
        from sam3d_tvm.occupancy import demo_occupancy

        with shown.bars(console) as tell:
            pipeline = _pipeline(checkpoint, artifacts, preset, precision, tell)
        with console.status("measuring ..."):
            costs = measure(pipeline.artifacts, None if own_voxels else demo_occupancy())
    if json:
        typer.echo(dumps([asdict(cost) for cost in (*costs, total(costs))], indent=1))
    else:
        console.print(shown.cost_table(costs, total(costs)))


@app.command()
def info(
    artifacts: Annotated[Path | None, typer.Argument(help="A folder of compiled models to tell about, too.")] = None,
    threads: Threads = None,
) -> None:
    """Versions, what kernels are built for on this machine, and what a folder of compiled models takes."""
    _begin(threads)
    import platform
    from importlib.metadata import version

    import tvm

    from sam3d_tvm import __version__
    from tir_kernels.dispatch import fingerprint, host_target

    rows = {
        "sam3d-tvm": __version__,
        "Python": platform.python_version(),
        "apache-tvm": tvm.__version__,
        "apache-tvm-ffi": version("apache-tvm-ffi"),
        "numpy": version("numpy"),
        "target": str(host_target()),
        "instruction set": fingerprint(),
        "threads": os.environ["TVM_NUM_THREADS"],
    }
    if artifacts is not None:
        with shown.without_warnings(False):
            from sam3d_tvm.memory import TYPICAL_VOXELS
            from sam3d_tvm.pipeline import Pipeline

            pipeline = Pipeline.from_artifacts(artifacts)
        rows["precision"] = pipeline.artifacts.precision
        for name, value in pipeline.memory().items():
            weights = pipeline.artifacts.weight_bytes(name)
            rows[name] = (
                f"{weights / 2**20:,.1f} MiB of weights, {value / 2**30:.2f} GiB estimated for {TYPICAL_VOXELS:,} voxels"
            )
    Console().print(shown.pairs_table(rows), highlight=False, markup=False, soft_wrap=True)


def _pipeline(checkpoint: Path | None, artifacts: Path | None, preset: str | None, precision: str | None, tell):
    """The pipeline that the options name. ValueError if they name none, or two, or artifacts of another precision."""
    from sam3d_tvm.pipeline import Pipeline

    def on_model(name: str, done: int, total: int) -> None:
        if total:
            tell("compile", done, total)

    if checkpoint is not None and preset is not None:
        raise ValueError(f"preset: expected no --checkpoint beside it, given {str(checkpoint)!r}")
    if checkpoint is not None:
        return Pipeline.from_checkpoint(checkpoint, artifacts, precision=precision or "float32", on_model=on_model)
    if preset is not None:
        return Pipeline.from_preset(preset, artifacts, precision=precision or "float32", on_model=on_model)
    if artifacts is not None:
        pipeline = Pipeline.from_artifacts(artifacts)
        if precision not in (None, pipeline.artifacts.precision):
            raise ValueError(f"precision: expected that of the artifacts, {pipeline.artifacts.precision}, given {precision!r}")
        return pipeline
    raise ValueError("checkpoint: expected --checkpoint FOLDER, --artifacts FOLDER of compiled models, or --preset tiny")


def _bytes(text: str | None) -> int | None:
    """Bytes of a size such as 8G, 8GiB or 500M. ValueError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"max_memory: expected a size such as 8G or 500M, given {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _begin(threads: int | None) -> None:
    """Threads are set before TVM starts its pool; then TVM is imported. ValueError below 1."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: expected an integer of at least 1, given {threads}")
        os.environ["TVM_NUM_THREADS"] = str(threads)
    import_tvm()


def _check_folder(path: Path) -> None:
    """ValueError if something on the way to `path` is no folder."""
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise ValueError(f"output: expected a folder, given {str(path)!r}, where {str(part)!r} is a file")
            return


if __name__ == "__main__":
    sys.exit(main())
