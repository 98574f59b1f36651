"""`sam3d-tvm generate`: one photo and a mask to a Gaussian splat and a mesh; and `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli.options import (
    Artifacts,
    Checkpoint,
    OptionalOutput,
    Output,
    Precision,
    Preset,
    Threads,
    Verbose,
    as_bytes,
    begin,
    open_pipeline,
)


def generate(
    image: Annotated[Path, typer.Argument(help="A photo: PNG, JPEG, ...; its alpha channel is the mask if none is given.")],
    masks: Annotated[list[Path] | None, typer.Argument(help="A mask for each object, of the photo's size.")] = None,
    output: OptionalOutput = None,
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
    formats: Annotated[
        str,
        typer.Option(help="Names with commas between: ply, compressed.ply, splat, spz, html, ply4, glb, mesh.ply, obj, stl."),
    ] = "ply,glb",
    stage1_only: Annotated[bool, typer.Option("--stage1-only", help="Voxels and pose alone.")] = False,
    precision: Precision = None,
    threads: Threads = None,
    max_memory: Annotated[str | None, typer.Option(help="Refuse what is estimated to take more: 8G, 500M.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a run with the same options that was interrupted: goes on with it, in place of --output."
        ),
    ] = None,
    from_structure: Annotated[
        Path | None,
        typer.Option(
            help="structure.safetensors of another run, or its folder: its voxels and pose, in place of the first stage."
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """One photo and a mask to a Gaussian splat and a mesh; with several masks also a scene of all objects.

    Writes splat.ply, mesh.glb, structure.safetensors, pose.json and views.png. Equal options give equal bytes.
    """
    begin(threads)
    limit, names = as_bytes(max_memory), [name.strip() for name in formats.split(",") if name.strip()]
    output = _folder(output, resume)
    console = shown.output()
    with shown.without_warnings(verbose), shown.bars() as tell:
        from sam3d_tvm.checks import check_size
        from sam3d_tvm.notices import say
        from sam3d_tvm.outputs import check_formats
        from sam3d_tvm.photo.images import load_pointmap, load_rgba
        from sam3d_tvm.run_folder import RunFolder, check_writable
        from sam3d_tvm.runs import generate_into, is_begun

        # What is wrong with the input, or with the folder, is said before models are compiled.
        check_formats(names)
        for name, value, least in (("seed", seed, 0), ("steps", steps, 1), ("slat_steps", slat_steps, 1)):
            check_size(name, least if value is None else value, least)
        for mask in masks or [None]:
            load_rgba(image, mask)
        if pointmap is not None:
            load_pointmap(pointmap)
        check_writable(output)
        RunFolder(output)
        if resume is not None and not is_begun(resume):
            say(f"resume: nothing in {str(resume)!r} to go on with, the run begins anew")
        pipeline = open_pipeline(checkpoint, artifacts, preset, precision, tell, () if stage1_only else names)
        try:
            results, written = generate_into(
                pipeline,
                output,
                image,
                masks or [],
                formats=names,
                resume=resume is not None,
                from_structure=from_structure,
                pointmap=pointmap,
                seed=seed,
                steps=steps,
                slat_steps=slat_steps,
                guidance=guidance,
                slat_guidance=slat_guidance,
                shortcut=shortcut,
                stage1_only=stage1_only,
                max_memory=limit,
                on_progress=lambda progress: tell(progress.stage, progress.done, progress.total),
            )
        except (OSError, MemoryError, KeyboardInterrupt):
            if is_begun(output):
                say(f"what is written stays: go on with the same options and --resume {output}")
            raise
    if verbose:
        console.print(f"artifacts in {pipeline.artifacts.folder}", markup=False, highlight=False, soft_wrap=True)
        estimate = pipeline.memory(max(len(result.coords) for result in results), stage1_only, names)
        console.print(shown.pairs_table({name: f"{value / 2**30:.2f} GiB estimated" for name, value in estimate.items()}))
        for result in results:
            console.print(shown.seconds_table(result.seconds))
    for result in results:
        console.print(_summary(result), highlight=False)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _folder(output: Path | None, resume: Path | None) -> Path:
    """Where results go. ValueError if both are given and differ."""
    if resume is None:
        return Path("out") if output is None else output
    if output is not None and output.resolve() != resume.resolve():
        raise ValueError(f"output: expected none beside --resume {str(resume)!r}, given {str(output)!r}")
    return resume


def _summary(result) -> str:
    parts = [f"{len(result.coords):,} voxels"]
    if result.gaussians is not None:
        parts.append(f"{len(result.gaussians):,} Gaussians")
    if result.mesh is not None:
        watertight = "" if result.mesh.is_watertight else "not "
        parts.append(f"a mesh of {len(result.mesh.faces):,} triangles, {watertight}watertight")
    return ", ".join(parts)


def demo(output: Output = Path("out/demo"), seed: Annotated[int, typer.Option(help="Of the noise.")] = 42) -> None:
    """Everything at a tiny size, with random weights, on a photo that comes along: a cup of coffee.

    The pictures show what a splat and a mesh look like, not a model's skill. The first run compiles, which takes minutes.
    """
    from importlib import resources

    data = resources.files("sam3d_tvm") / "data"
    with resources.as_file(data / "coffee.png") as image, resources.as_file(data / "coffee_mask.png") as mask:
        generate(image, [mask], output, preset="tiny", seed=seed, formats="ply,html,glb")
