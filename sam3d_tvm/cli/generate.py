"""`sam3d-tvm generate`: one photo and a mask to a Gaussian splat and a mesh; and `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli.options import (
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
    OptionalOutput,
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

ALL_LABELS = "all"


def generate(
    image: Annotated[
        Path, typer.Argument(help="A photo: PNG, JPEG, HEIC, AVIF, ...; its alpha channel is the mask if none is given.")
    ],
    masks: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A mask for each object, of the photo's size: 0 outside, any one value inside, or soft edges. With --masks or "
            "--multi-view: further photos of the object, up to 7."
        ),
    ] = None,
    photo_masks: Annotated[
        list[Path] | None,
        typer.Option(
            "--masks",
            metavar="MASK...",
            help="Several photos of one object: a mask for each of them, in their order. Without, their alpha channels.",
        ),
    ] = None,
    multi_view: Annotated[
        str | None,
        typer.Option(
            help="Several photos of one object: mean follows all of them in every step, cycle one in each. The pose is that "
            "in the first photo.",
            show_default="mean",
        ),
    ] = None,
    output: OptionalOutput = None,
    checkpoint: Checkpoint = None,
    artifacts: Artifacts = None,
    preset: Preset = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="LABELS",
            help="The mask is a picture of labels, an object each: those named, as 3,7, or all if none are.",
        ),
    ] = None,
    mask_upright: MaskUpright = False,
    pointmap: Annotated[
        Path | None, typer.Option(help="A position in space for each pixel: .npy, .npz, .pt; unknown where NaN or 0, 0, 0.")
    ] = None,
    pointmap_axes: PointmapAxes = "auto",
    depth: Annotated[
        Path | None, typer.Option(help="Depth for each pixel in place of a point map: .png of 16 bits, .tiff, .npy, .npz, .pt.")
    ] = None,
    depth_scale: Annotated[
        float | None, typer.Option(help="Units of depth in a metre, above 0.", show_default="1000 for integers, 1 for floats")
    ] = None,
    intrinsics: Annotated[
        str | None,
        typer.Option(
            help="Of the depth's camera: fx,fy,cx,cy in its pixels, or a file of them or of a 3x3 matrix.",
            show_default="those in the file of the depth",
        ),
    ] = None,
    depth_model: DepthModel = None,
    no_depth: NoDepth = False,
    fov: Fov = None,
    scene: Annotated[
        bool,
        typer.Option("--scene", help="Write several objects into scene_* files even where nothing says where they are."),
    ] = False,
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
    resume: Annotated[
        Path | None,
        typer.Option(
            help="In place of --output: the folder of a run with the same options that was interrupted. What is there is kept; "
            "files come to the same bytes."
        ),
    ] = None,
    from_structure: Annotated[
        Path | None,
        typer.Option(
            help="structure.safetensors of another run, or its folder: its voxels and pose in place of the first stage."
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """One photo and a mask to a Gaussian splat and a mesh; several masks also to a scene of them all, where a depth model, a
    point map or depth says where they are; several photos, with --masks or --multi-view, to one object that they all show.

    Writes splat.ply, mesh.glb, structure.safetensors, pose.json and views.png. Equal options give equal bytes.
    """
    begin(threads, device)
    limit, names, view = as_bytes(max_memory), as_names(formats), as_fov(fov)
    output = _folder(output, resume)
    console = shown.output()
    with shown.without_warnings(verbose), shown.bars() as tell:
        from sam3d_tvm import memory
        from sam3d_tvm.checks import check_size
        from sam3d_tvm.depth import fov_of
        from sam3d_tvm.expected_time import remember
        from sam3d_tvm.notices import say
        from sam3d_tvm.outputs import check_formats
        from sam3d_tvm.photo.images import check_mask, load_photo
        from sam3d_tvm.photo.pointmaps import load_points
        from sam3d_tvm.pipeline import as_views
        from sam3d_tvm.runs import check_folder, generate_into, is_begun

        # What is wrong with the input, or with the folder, is said before models are compiled.
        check_formats(names)
        savings = as_savings(quality, fast, structure_cache, latents_cache, reuse_guidance)
        surface = as_surface(triangles, texture_size)
        for name, value, least in (("seed", seed, 0), ("steps", steps, 1), ("slat_steps", slat_steps, 1)):
            check_size(name, least if value is None else value, least)
        views, mode = [], multi_view or "mean"
        if photo_masks is not None or multi_view is not None:
            masks, views = _of_one_object([image, *(masks or [])], photo_masks, labels)
        as_views(views, mode)
        for photo, mask in () if limit is None else [*((image, mask) for mask in masks or [None]), *views]:
            with_points = photo == image and (pointmap is not None or depth is not None)
            memory.check({memory.IMAGE: memory.of_photo(photo, mask, with_points)}, limit, "")
        given, objects = (list(masks or []), None) if labels is None else _labelled(image, masks, labels, mask_upright)
        photo = load_photo(image, given[0] if given else None, mask_upright)
        for mask in given[1:]:
            check_mask(image, mask, mask_upright)
        points = {"depth": depth, "depth_scale": depth_scale, "intrinsics": intrinsics}
        load_points(pointmap, pointmap_axes, **points, size=photo.size, orientation=photo.orientation)
        if pointmap is None and depth is None:
            fov_of(view, image)
        del photo
        for further, mask in views:
            load_photo(further, mask, mask_upright)
            fov_of(view, further)
        check_folder(output, max(1, len(given)), names, resume is not None, from_structure)
        if resume is not None and not is_begun(resume):
            say(f"resume: nothing in {str(resume)!r} to go on with, the run begins anew")
        needed = () if stage1_only else names
        pipeline = open_pipeline(checkpoint, artifacts, preset, precision, tell, needed, target=target, depth_model=depth_model)
        sampling = {"steps": steps, "slat_steps": slat_steps, "guidance": guidance, "slat_guidance": slat_guidance}
        sampling |= {"shortcut": shortcut, **savings}
        try:
            results, written = generate_into(
                pipeline,
                output,
                image,
                given,
                formats=names,
                scene=scene or None,
                names=objects,
                resume=resume is not None,
                from_structure=from_structure,
                pointmap=pointmap,
                pointmap_axes=pointmap_axes,
                **points,
                depth_model=not no_depth,
                fov=view,
                mask_upright=mask_upright,
                views=views,
                multi_view=mode,
                seed=seed,
                **sampling,
                triangles=surface.triangles,
                texture_size=surface.texture_size,
                stage1_only=stage1_only,
                max_memory=limit,
                on_progress=announcing(pipeline, sampling, tell, len(given) > 1, stage1_only),
            )
        except (OSError, MemoryError, KeyboardInterrupt):
            if is_begun(output):
                say(f"what is written stays: go on with the same options and --resume {output}")
            raise
        for result in results:
            remember(pipeline.artifacts, result.seconds, result.evaluations)
    if verbose:
        shown.print_line(console, f"artifacts in {pipeline.artifacts.folder}")
        given_points = {} if views else {"pointmap": pointmap, "depth": depth}  # of the first photo alone
        looked = pipeline.runs_depth_model(given_points | {"depth_model": not no_depth})
        most = max(len(result.coords) for result in results)
        estimate = pipeline.memory(most, stage1_only, names, depth_model=looked, views=1 + len(views))
        console.print(shown.pairs_table({name: f"{value / 2**30:.2f} GiB estimated" for name, value in estimate.items()}))
        for result in results:
            console.print(shown.seconds_table(result.seconds))
            console.print(shown.pairs_table({f"{name} of the {stage}": str(count) for name, stage, count in _counted(result)}))
    for result in results:
        shown.print_line(console, _summary(result))
    for path in written:
        shown.print_line(console, f"wrote {path}")


def _of_one_object(photos: list[Path], masks: list[Path] | None, labels: str | None) -> tuple[list[Path], list[tuple]]:
    """The mask of the first photo of an object, if one is given, and further photos of it with their masks."""
    if labels is not None:
        raise ValueError("labels: expected with masks of one photo, given with --masks or --multi-view, for several photos")
    if masks is not None and len(masks) != len(photos):
        several = "; masks of several objects in one photo go behind it, without --masks" if len(photos) == 1 else ""
        raise ValueError(f"masks: expected one for each of {len(photos)} photos, in their order, given {len(masks)}{several}")
    first, *further = zip(photos, masks or [None] * len(photos), strict=True)
    return [mask for mask in first[1:] if mask is not None], further


def _labelled(image: Path, masks: list[Path] | None, labels: str, mask_upright: bool) -> tuple[list, list[str]]:
    """A mask for each label of the only mask, as arrays, and what the objects are called."""
    from sam3d_tvm.notices import say
    from sam3d_tvm.photo.images import split_labels

    if len(masks or ()) != 1:
        raise ValueError(f"labels: expected one mask, a picture of labels, given {len(masks or ())}")
    wanted = None if labels == ALL_LABELS else [label.strip() for label in labels.split(",")]
    found = split_labels(masks[0], wanted, image, mask_upright)
    names = [f"label_{label}" for label, _ in found]
    say(f"labels: {', '.join(f'object {number} is {name}' for number, name in enumerate(names, 1))}")
    return [mask for _, mask in found], names


def _folder(output: Path | None, resume: Path | None) -> Path:
    """Where results go. ValueError if both are given and differ."""
    if resume is None:
        return Path("out") if output is None else output
    if output is not None and output.resolve() != resume.resolve():
        raise ValueError(f"output: expected none beside --resume {str(resume)!r}, given {str(output)!r}")
    return resume


def _counted(result) -> list[tuple[str, str, int]]:
    """Evaluations of the generators, and velocities that were forecast: what, of which stage, how many."""
    what = {"conditional": "evaluations", "unconditional": "evaluations without condition", "forecast": "forecasts"}
    return [(what[name], stage, n) for stage, counts in result.evaluations.items() for name, n in counts.items()]


def _summary(result) -> str:
    parts = [f"{len(result.coords):,} voxels"]
    if result.gaussians is not None:
        parts.append(f"{len(result.gaussians):,} Gaussians")
    if result.mesh is not None:
        parts.append(_described("a mesh", result.written_mesh))
    if result.baked is not None:
        parts.append(_described("with a texture", result.baked.mesh))
    return ", ".join(parts)


def _described(what: str, mesh) -> str:
    return f"{what} of {len(mesh.faces):,} triangles, {'' if mesh.is_watertight else 'not '}watertight"


def demo(output: Output = Path("out/demo"), seed: Annotated[int, typer.Option(help="Of the noise, from 0.")] = 42) -> None:
    """The small model that comes along, on a photo that does, too: a cup of coffee.

    It was trained on made-up tableware, and shows what a splat and a mesh look like, not the skill of the published weights.
    The first run compiles, which takes a minute.
    """
    from importlib import resources

    data = resources.files("sam3d_tvm") / "data"
    with resources.as_file(data / "coffee.png") as image, resources.as_file(data / "coffee_mask.png") as mask:
        generate(image, [mask], output=output, preset="tiny", seed=seed, formats="ply,html,glb")
