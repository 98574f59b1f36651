"""`sam3d-tvm depth`: the point map, depth and camera of a photo."""

from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli.options import (
    RANDOM,
    Artifacts,
    Checkpoint,
    DepthModel,
    Device,
    Fov,
    Output,
    Precision,
    Preset,
    Target,
    Threads,
    Verbose,
    as_fov,
    begin,
    parsed_target,
    telling_models,
)


def depth(
    image: Annotated[Path, typer.Argument(help="A photo: PNG, JPEG, HEIC, AVIF, ...; transparency does not count.")],
    output: Output = Path("out"),
    depth_model: DepthModel = None,
    checkpoint: Checkpoint = None,
    artifacts: Artifacts = None,
    preset: Preset = None,
    fov: Fov = None,
    resolution_level: Annotated[float, typer.Option(help="From 0, fast, to 9, exact.")] = 9,
    precision: Precision = None,
    target: Target = None,
    device: Device = None,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """The distance of everything in a photo, by the depth model alone: --depth-model, or that of a checkpoint.

    Writes points.npz, which --pointmap takes, points.ply, depth.png and intrinsics.json. Equal options give equal bytes.
    """
    begin(threads, device)
    view = as_fov(fov)
    console = shown.output()
    with shown.without_warnings(verbose), shown.bars() as tell:
        from sam3d_tvm.depth import check_files_free, fov_of, save_depth
        from sam3d_tvm.models.moge.infer import check_level
        from sam3d_tvm.photo.images import load_colours
        from sam3d_tvm.run_folder import check_writable

        # What is wrong with the input, or with the folder, is said before the model is compiled.
        check_level(resolution_level)
        rgb, across = load_colours(image), fov_of(view, image)
        check_writable(output)
        check_files_free(output)
        estimator = _opened(depth_model, checkpoint, artifacts, preset, precision, target, tell)
        tell("depth", 0, 1)
        found = estimator(rgb, across, resolution_level)
        tell("depth", 1, 1)
        written = save_depth(output, found, rgb)
    width, height = found.size
    known = f"{width} x {height} pixels, {found.mask.mean():.0%} of them with a depth"
    shown.print_line(console, f"{known}; {found.fov_x:.1f} degrees across")
    for path in written:
        shown.print_line(console, f"wrote {path}")


def _opened(
    depth_model: str | None,
    checkpoint: Path | None,
    artifacts: Path | None,
    preset: str | None,
    precision: str | None,
    target: str | None,
    tell,
):
    """The depth model that the options name. ValueError if they name none, or more than one."""
    from sam3d_tvm.depth import DepthEstimator

    options = {"precision": precision or "float32", "target": parsed_target(target), "on_model": telling_models(tell)}
    if preset is not None:
        if checkpoint is not None or depth_model not in (None, RANDOM):
            given = "--checkpoint" if checkpoint is not None else f"--depth-model {depth_model}"
            raise ValueError(f"preset: expected no model beside it, given {given}")
        return DepthEstimator.from_preset(preset, artifacts, **options)
    if checkpoint is not None:
        return DepthEstimator.from_checkpoint(checkpoint, artifacts, depth_model=depth_model, **options)
    if depth_model is not None:
        return DepthEstimator.from_file(depth_model, artifacts, **options)
    if artifacts is not None:
        return DepthEstimator.from_artifacts(artifacts, precision=precision, target=options["target"])
    raise ValueError(
        "depth_model: expected --depth-model PATH of a model.pt, --checkpoint FOLDER, --artifacts FOLDER of compiled models, "
        "or --preset random-tiny"
    )
