"""Options that several commands share, and what commands do before they begin."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.tvm_without_torch import import_tvm

RANDOM = "random"  # in place of the path of a depth model
FAST = {"structure": "linear", "latents": "error"}  # caches of Fast-SAM3D
BAD_OPTIONS, FAILED, STOPPED = 2, 1, 130  # exit codes
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

EXAMPLES = {
    "generate": "Example: sam3d-tvm generate photo.jpg mask.png --checkpoint checkpoints/hf -o out --formats ply,glb",
    "batch": "Example: sam3d-tvm batch photos -o out --checkpoint checkpoints/hf --max-memory 16G",
    "depth": "Example: sam3d-tvm depth photo.jpg --depth-model model.pt -o out",
    "compile": "Example: sam3d-tvm compile checkpoints/hf -o artifacts",
    "calibrate": "Example: sam3d-tvm calibrate cup.jpg cup_mask.png chair.jpg chair_mask.png --checkpoint checkpoints/hf",
    "view": "Example: sam3d-tvm view out/splat.ply",
    "info": "Example: sam3d-tvm info artifacts",
    "validate": "Example: sam3d-tvm validate --component dinov2",
}

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if it is not there.")]
OptionalOutput = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the results.", show_default="out")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Checkpoint as published: its folder, the download's root, or pipeline.yaml.", envvar="SAM3D_CHECKPOINT"),
]
Artifacts = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the compiled models; by default one in the user's cache. Without --checkpoint and --preset: a folder "
        "that was compiled before.",
        envvar="SAM3D_ARTIFACTS",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="In place of a checkpoint: tiny, a small model that comes along, trained on tableware; or random weights: "
        "random-tiny (seconds, MBs) or full (the real sizes, many GBs)."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Inside the models: float32, bfloat16 or float16; tf32 for float32 of coarser products, on CUDA alone; int8 for "
        "integer products in the layers that gain by them, see calibrate; int7 for fewer bits, where int8 gains nothing.",
        show_default="float32, or that of --artifacts",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="What the models are compiled for: cpu; cuda, the GPU of --device; cuda:sm_90, GPUs of an architecture that this "
        "machine may not have, for which it can compile alone.",
        show_default="cpu, or that of --artifacts",
    ),
]
Device = Annotated[int | None, typer.Option(help="Number of the GPU, from 0, for --target cuda.", show_default="0")]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads, at least 1.", show_default="all cores that the process may use")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show estimates of memory, times of all stages, and warnings of libraries.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

MaskUpright = Annotated[
    bool,
    typer.Option(
        "--mask-upright",
        help="A mask without EXIF data was drawn on the photo as it is seen, not on its pixels as they lie in the file, "
        "where both fit.",
    ),
]
PointmapAxes = Annotated[
    str,
    typer.Option(
        help="auto tells them by signs; pytorch3d: x left, y up, z away; opencv: x right, y down, z away; opengl: x right, "
        "y up, z towards the viewer."
    ),
]
DepthModel = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="The depth model, MoGe's model.pt: the file, its folder, or that in the cache of the hub; with a preset of random "
        "weights: random, for one of such.",
        show_default="where the checkpoint says, beside it or in the cache of the hub",
    ),
]
NoDepth = Annotated[bool, typer.Option("--no-depth", help="Leave the depth model out.")]
Fov = Annotated[
    str | None,
    typer.Option(
        metavar="DEGREES",
        help="Angle of view across the photo, or exif: that of its EXIF data. The depth model then need not find it.",
        show_default="found by the depth model",
    ),
]
Seed = Annotated[int, typer.Option(help="Of the noise, from 0. Equal seeds give equal results.")]
Steps = Annotated[
    int | None, typer.Option(help="Steps of both samplers, at least 1.", show_default="the checkpoint's, 25 as published")
]
SlatSteps = Annotated[
    int | None, typer.Option(help="Steps for the structured latents alone, at least 1.", show_default="as --steps")
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Strength of guidance for the structure, any number; 0: none.", show_default="the checkpoint's, 7"),
]
SlatGuidance = Annotated[
    float | None, typer.Option(help="The same for the structured latents.", show_default="the checkpoint's, 1")
]
Shortcut = Annotated[
    bool, typer.Option("--shortcut", help="A structure in few steps, 4 unless --steps says otherwise. Guidance is not used.")
]
QualityName = Annotated[
    str | None,
    typer.Option(
        "--quality",
        help="How many evaluations of the models a result is worth: exact; normal, with some velocities forecast from others; "
        "draft, in few steps. Options beside it win.",
        show_default="exact",
    ),
]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="Forecast velocities as published for this model: --structure-cache linear, --latents-cache error.",
    ),
]
StructureCache = Annotated[
    str | None,
    typer.Option(
        help="Velocities of the structure that are forecast, where every third step is evaluated: none, linear, hermite; or "
        "error, where an estimated error stays below a bound.",
        show_default="that of --quality",
    ),
]
LatentsCache = Annotated[
    str | None, typer.Option(help="The same for the structured latents.", show_default="that of --quality")
]
ReuseGuidance = Annotated[
    bool,
    typer.Option("--reuse-guidance", help="Where guidance changes little, use the difference that it made in an earlier step."),
]
Formats = Annotated[
    str,
    typer.Option(
        help="Names with commas between: ply, compressed.ply, splat, spz, html, ply4, glb, mesh.ply, obj, stl, "
        "textured.glb, textured.obj."
    ),
]
Triangles = Annotated[
    int | None,
    typer.Option(
        help="The most triangles of meshes, at least 4.", show_default="20,000 with a texture, else as many as there are"
    ),
]
TextureSize = Annotated[int | None, typer.Option(help="Pixels of a texture along each side, 16 to 8192.", show_default="1024")]
StageOneOnly = Annotated[bool, typer.Option("--stage1-only", help="Voxels and pose alone; generate --resume goes on.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Refuse what is estimated to take more memory: a number and K, M, G or T, of 1,024 each.",
        show_default="no limit",
    ),
]


def open_pipeline(
    checkpoint: Path | None,
    artifacts: Path | None,
    preset: str | None,
    precision: str | None,
    tell,
    formats=None,
    target: str | None = None,
    depth_model: str | None = None,
):
    """The pipeline that the options name, with the decoders that `formats` need, if given. ValueError if they name none, or
    two, artifacts of another precision or kind of target, or a depth model that does not belong there."""
    from sam3d_tvm.pipeline import Pipeline

    compiled_for = parsed_target(target)
    options = {"precision": precision or "float32", "target": compiled_for, "on_model": telling_models(tell)}
    if checkpoint is not None and preset is not None:
        raise ValueError(f"preset: expected no --checkpoint beside it, given {str(checkpoint)!r}")
    if checkpoint is not None:
        pipeline = Pipeline.from_checkpoint(checkpoint, artifacts, formats=formats, depth_model=depth_model, **options)
    elif preset is not None:
        pipeline = Pipeline.from_preset(preset, artifacts, depth_model=has_random(depth_model), **options)
    elif artifacts is not None:
        if depth_model is not None:
            raise ValueError(
                f"depth_model: expected with --checkpoint or --preset, given {depth_model!r} with --artifacts alone"
            )
        pipeline = Pipeline.from_artifacts(artifacts)
        pipeline.artifacts.check_made_for(precision, compiled_for)
    else:
        raise ValueError("checkpoint: expected --checkpoint FOLDER, --artifacts FOLDER of compiled models, or --preset tiny")
    say_integers(pipeline.artifacts)
    return pipeline


def has_random(depth_model: str | None) -> bool:
    """Whether a preset is to have a depth model. ValueError for the path of one."""
    if depth_model not in (None, RANDOM):
        raise ValueError(f"depth_model: expected {RANDOM} with --preset, given {depth_model!r}")
    return depth_model is not None


def telling_models(tell):
    """An `artifacts.OnCompile` that moves a bar of `tell`, if there is a model to compile."""

    def on_model(name: str, done: int, total: int) -> None:
        if total:
            tell("compile", done, total)

    return on_model


def parsed_target(target: str | None):
    """What TVM calls a `Target`; None without one."""
    from sparse_ops.devices import parse_target

    return None if target is None else parse_target(target)


def say_integers(artifacts) -> None:
    """Notices of artifacts of int8 or int7: that nothing is gained, by this CPU or these models, or what is not calibrated."""
    from tvm.target import Target

    from sam3d_tvm.notices import say
    from sparse_ops.transform.precision import QUANTIZED, features_of, gains

    precision, missing = artifacts.precision, artifacts.uncalibrated
    if precision in QUANTIZED and not artifacts.integers:
        target = Target(dict(artifacts.target))
        there = "on this CPU" if target.kind.name == "llvm" else f"on targets of kind {target.kind.name!r}"
        where = "in these models" if gains(precision, target) else there
        say(f"{precision} gains nothing {where}: all layers are in {features_of(precision, target)}")
    if missing:
        say(f"{precision} without calibration in {', '.join(missing)}: sam3d-tvm calibrate makes it more exact")


def as_savings(
    quality: str | None, fast: bool, structure_cache: str | None, latents_cache: str | None, reuse_guidance: bool
) -> dict:
    """Options of `Pipeline.steps` that these come to. ValueError for names that there are not, and --fast with --quality."""
    from sam3d_tvm.checks import check_choice
    from sam3d_tvm.quality import as_quality
    from sam3d_tvm.velocity_caching import CACHES

    as_quality(quality)
    if fast and quality is not None:
        raise ValueError(f"fast: expected without --quality, which chooses caches of its own, given {quality!r}")
    for name, value in (("structure_cache", structure_cache), ("latents_cache", latents_cache)):
        if value is not None:
            check_choice(name, value, CACHES)
    if fast:
        structure_cache, latents_cache = structure_cache or FAST["structure"], latents_cache or FAST["latents"]
    caches = {"structure_cache": structure_cache, "latents_cache": latents_cache}
    return {"quality": quality, **caches, "reuse_guidance": reuse_guidance or None}


def announcing(pipeline, options, tell, several: bool = False, stage1_only: bool = False):
    """What is told of progress: first it says how many evaluations of the generators are to come for each object, and how long
    one is expected to take; `tell` has the rest."""
    said = False

    def on_progress(progress) -> None:
        nonlocal said
        if not said:
            said = True
            _say_evaluations(pipeline, options, several, stage1_only)
        tell(progress.stage, progress.done, progress.total)

    return on_progress


def _say_evaluations(pipeline, options, several: bool, stage1_only: bool) -> None:
    from sam3d_tvm.expected_time import expected_seconds
    from sam3d_tvm.notices import say

    planned = pipeline.plan(options)
    counts = planned.at_most()
    if stage1_only:
        counts = {"structure": counts["structure"]}
    parts = [f"{'' if getattr(planned, name).is_known else 'at most '}{n} of the {name}" for name, n in counts.items()]
    seconds = None if stage1_only else expected_seconds(pipeline.artifacts, counts)
    most = "" if all(getattr(planned, name).is_known for name in counts) else "at most "
    expected = f"{most}about {shown.clock(seconds or 0)} by the time of the last run"
    expected = "time unknown until the first evaluation" if seconds is None else expected
    say(f"evaluations{' for each object' if several else ''}: {', '.join(parts)}; {expected}")


def as_bytes(text: str | None) -> int | None:
    """Bytes of a size such as 8G, 8GiB or 500M. ValueError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"max_memory: expected a size such as 8G or 500M, given {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


def begin(threads: int | None, device: int | None = None) -> None:
    """Threads are set before TVM starts its pool; then TVM is imported. ValueError below 1, and for a GPU that is not there."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: expected an integer of at least 1, given {threads}")
        os.environ["TVM_NUM_THREADS"] = str(threads)
    import_tvm()
    if device is not None:
        from sparse_ops.devices import use_device

        use_device(device)


def as_fov(text: str | None) -> float | str | None:
    """A field of view in degrees, "exif" or None. ValueError for anything else."""
    from sam3d_tvm.depth import EXIF, check_view

    try:
        value = text if text in (None, EXIF) else float(text)
    except ValueError:
        value = text
    check_view(value)
    return value


def as_names(formats: str) -> list[str]:
    """The names of `Formats`."""
    return [name.strip() for name in formats.split(",") if name.strip()]


def as_surface(triangles: int | None, texture_size: int | None):
    """The `bake.Surface` of `Triangles` and `TextureSize`. ValueError as there."""
    from sam3d_tvm.mesh.bake import TEXTURE_SIZE, Surface

    return Surface(triangles, TEXTURE_SIZE if texture_size is None else texture_size)
