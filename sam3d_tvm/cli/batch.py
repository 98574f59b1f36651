"""`sam3d-tvm batch`: many photos, with a table of results."""

from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli.options import (
    FAILED,
    Artifacts,
    Checkpoint,
    DepthModel,
    Device,
    Fast,
    Formats,
    Fov,
    Guidance,
    LatentsCache,
    MaskUpright,
    MaxMemory,
    NoDepth,
    Output,
    PointmapAxes,
    Precision,
    Preset,
    QualityName,
    ReuseGuidance,
    Seed,
    Shortcut,
    SlatGuidance,
    SlatSteps,
    StageOneOnly,
    Steps,
    StructureCache,
    Target,
    TextureSize,
    Threads,
    Triangles,
    Verbose,
    announcing,
    as_bytes,
    as_fov,
    as_names,
    as_savings,
    as_surface,
    begin,
    open_pipeline,
)


def batch(
    photos: Annotated[
        Path | None,
        typer.Argument(
            help="A folder: name.png with name_mask.png, or name_mask_1.png and more; name.png with an alpha channel; folders "
            "name/ with image.png and 0.png, 1.png and more. Or a .csv file."
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="In place of a folder: columns photo, mask (several with ; between), pointmap, seed and name."),
    ] = None,
    output: Output = Path("out"),
    checkpoint: Checkpoint = None,
    artifacts: Artifacts = None,
    preset: Preset = None,
    mask_upright: MaskUpright = False,
    pointmap_axes: PointmapAxes = "auto",
    depth_model: DepthModel = None,
    no_depth: NoDepth = False,
    fov: Fov = None,
    seed: Seed = 42,
    steps: Steps = None,
    slat_steps: SlatSteps = None,
    guidance: Guidance = None,
    slat_guidance: SlatGuidance = None,
    shortcut: Shortcut = False,
    quality: QualityName = None,
    fast: Fast = False,
    structure_cache: StructureCache = None,
    latents_cache: LatentsCache = None,
    reuse_guidance: ReuseGuidance = False,
    formats: Formats = "ply,glb",
    triangles: Triangles = None,
    texture_size: TextureSize = None,
    stage1_only: StageOneOnly = False,
    precision: Precision = None,
    target: Target = None,
    device: Device = None,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster that exists, or auto; --threads are those of each worker then."),
    ] = None,
    verbose: Verbose = False,
) -> int:
    """Many photos to a Gaussian splat and a mesh each, with results.csv and index.html of them all.

    Goes on after a photo that fails, and exits with 1 then. Run again with the same options, it keeps what is done. Each model
    is opened once for as many objects as --max-memory leaves room for.
    """
    begin(threads, device)
    limit, names, view = as_bytes(max_memory), as_names(formats), as_fov(fov)
    if (photos is None) == (csv is None):
        raise ValueError(f"photos: expected a folder, or --csv FILE, given {'neither' if csv is None else 'both'}")
    console = shown.output()
    with shown.without_warnings(verbose), shown.bars() as tell:
        from sam3d_tvm.batch.jobs import read_jobs
        from sam3d_tvm.batch.run import in_this_process, run_batch
        from sam3d_tvm.batch.tasks import Row
        from sam3d_tvm.expected_time import remember
        from sam3d_tvm.notices import say
        from sam3d_tvm.outputs import check_formats
        from sam3d_tvm.run_folder import check_writable

        # What is wrong with the input, or with the folder, is said before models are compiled.
        check_formats(names)
        savings = as_savings(quality, fast, structure_cache, latents_cache, reuse_guidance)
        surface = as_surface(triangles, texture_size)
        jobs = read_jobs(csv or photos, output, is_table=csv is not None)
        if jobs.ignored:
            say(f"passed over, as they are no pictures: {', '.join(jobs.ignored)}")
        check_writable(output)
        runner = in_this_process
        if ray is not None:
            from sam3d_tvm.batch.cluster import on_ray

            runner = on_ray(ray, threads)
        needed = () if stage1_only else names
        pipeline = open_pipeline(checkpoint, artifacts, preset, precision, tell, needed, target=target, depth_model=depth_model)

        sampling = {"steps": steps, "slat_steps": slat_steps, "guidance": guidance, "slat_guidance": slat_guidance}
        sampling |= {"shortcut": shortcut, **savings}

        def show(row: Row) -> None:
            shown.print_line(console, _line(row))
            if ray is None:  # or the seconds are another machine's
                remember(pipeline.artifacts, row.seconds, row.evaluations)

        rows = run_batch(
            pipeline,
            jobs,
            output,
            runner=runner,
            on_row=show,
            on_progress=announcing(pipeline, sampling, tell, True, stage1_only),
            mask_upright=mask_upright,
            pointmap_axes=pointmap_axes,
            depth_model=not no_depth,
            fov=view,
            seed=seed,
            **sampling,
            formats=names,
            triangles=surface.triangles,
            texture_size=surface.texture_size,
            stage1_only=stage1_only,
            max_memory=limit,
        )
    for name in ("results.csv", "index.html"):
        shown.print_line(console, f"wrote {output / name}")
    if failed := sum(row.error != "" for row in rows):
        shown.say_error(f"{failed} of {len(rows)} objects failed, see {output / 'results.csv'}")
        return FAILED
    return 0


def _line(row) -> str:
    if row.error:
        return f"{row.name}: failed: {row.error}"
    counts = {"voxels": row.voxels, "Gaussians": row.gaussians, "triangles": row.triangles}
    return f"{row.name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items() if count is not None)
