"""Options that several commands share, and what commands do before they begin."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm.tvm_without_torch import import_tvm

BAD_OPTIONS, FAILED, STOPPED = 2, 1, 130  # exit codes
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
OptionalOutput = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the results.  [default: out]")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Checkpoint as published: its folder, the download's root, or pipeline.yaml.", envvar="SAM3D_CHECKPOINT"),
]
Artifacts = Annotated[
    Path | None, typer.Option(help="Folder of the compiled models; alone, what was compiled before.", envvar="SAM3D_ARTIFACTS")
]
Preset = Annotated[str | None, typer.Option(help="Random weights in place of a checkpoint: tiny or full.")]
Precision = Annotated[str | None, typer.Option(help="float32, which is the default, or bfloat16 or float16 inside the models.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default all cores.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show estimates, times of all stages, and warnings.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Seed = Annotated[int, typer.Option(help="Of the noise.")]
Steps = Annotated[int | None, typer.Option(help="Of both generators; by default what the checkpoint says.")]
SlatSteps = Annotated[int | None, typer.Option(help="Of the structured latents alone.")]
Guidance = Annotated[float | None, typer.Option(help="Strength for the structure.")]
SlatGuidance = Annotated[float | None, typer.Option(help="Strength for the structured latents.")]
Shortcut = Annotated[bool, typer.Option("--shortcut", help="A structure in few steps, without guidance.")]
Formats = Annotated[
    str, typer.Option(help="Names with commas between: ply, compressed.ply, splat, spz, html, ply4, glb, mesh.ply, obj, stl.")
]
StageOneOnly = Annotated[bool, typer.Option("--stage1-only", help="Voxels and pose alone.")]
MaxMemory = Annotated[str | None, typer.Option(help="Refuse what is estimated to take more: 8G, 500M.")]


def open_pipeline(
    checkpoint: Path | None, artifacts: Path | None, preset: str | None, precision: str | None, tell, formats=None
):
    """The pipeline that the options name, with the decoders that `formats` need, if given. ValueError if they name none, or
    two, or artifacts of another precision."""
    from sam3d_tvm.pipeline import Pipeline

    def on_model(name: str, done: int, total: int) -> None:
        if total:
            tell("compile", done, total)

    if checkpoint is not None and preset is not None:
        raise ValueError(f"preset: expected no --checkpoint beside it, given {str(checkpoint)!r}")
    if checkpoint is not None:
        options = {"formats": formats, "precision": precision or "float32", "on_model": on_model}
        return Pipeline.from_checkpoint(checkpoint, artifacts, **options)
    if preset is not None:
        return Pipeline.from_preset(preset, artifacts, precision=precision or "float32", on_model=on_model)
    if artifacts is not None:
        pipeline = Pipeline.from_artifacts(artifacts)
        if precision not in (None, pipeline.artifacts.precision):
            raise ValueError(f"precision: expected that of the artifacts, {pipeline.artifacts.precision}, given {precision!r}")
        return pipeline
    raise ValueError("checkpoint: expected --checkpoint FOLDER, --artifacts FOLDER of compiled models, or --preset tiny")


def as_bytes(text: str | None) -> int | None:
    """Bytes of a size such as 8G, 8GiB or 500M. ValueError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"max_memory: expected a size such as 8G or 500M, given {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


def begin(threads: int | None) -> None:
    """Threads are set before TVM starts its pool; then TVM is imported. ValueError below 1."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: expected an integer of at least 1, given {threads}")
        os.environ["TVM_NUM_THREADS"] = str(threads)
    import_tvm()


def check_folder(path: Path) -> None:
    """ValueError if something on the way to `path` is no folder."""
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise ValueError(f"output: expected a folder, given {str(path)!r}, where {str(part)!r} is a file")
            return
