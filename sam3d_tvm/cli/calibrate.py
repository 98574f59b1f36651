"""`sam3d-tvm calibrate`: what integer layers keep in floats, found on photos."""

from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli.options import (
    Artifacts,
    Checkpoint,
    DepthModel,
    Preset,
    Seed,
    SlatSteps,
    Steps,
    Threads,
    Verbose,
    begin,
    has_random,
    telling_models,
)


def calibrate(
    objects: Annotated[
        list[Path],
        typer.Argument(
            metavar="PHOTO MASK ...", help="Photos, each with the mask of an object; a few that are as yours will be."
        ),
    ],
    checkpoint: Checkpoint = None,
    artifacts: Artifacts = None,
    preset: Preset = None,
    depth_model: DepthModel = None,
    precision: Annotated[str, typer.Option(help="int8 or int7.")] = "int8",
    seed: Seed = 42,
    steps: Steps = None,
    slat_steps: SlatSteps = None,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Runs the models of --precision int8 on photos, and tells them which channels of their layers to keep in floats.

    What is not compiled yet is compiled. The checkpoint is needed again, as these channels take weights that are not rounded.
    """
    begin(threads)
    console = shown.output()
    with shown.without_warnings(verbose), shown.bars() as tell:
        from sam3d_tvm.artifacts import CheckpointSource, default_folder
        from sam3d_tvm.calibrate import calibrate as calibrated
        from sam3d_tvm.checks import check_size
        from sam3d_tvm.notices import say
        from sam3d_tvm.photo.images import load_photo
        from sam3d_tvm.presets import preset_source

        if len(objects) % 2:
            raise ValueError(f"objects: expected a mask for each photo, given {len(objects)} files")
        pairs = list(zip(objects[::2], objects[1::2], strict=True))
        for name, value, least in (("seed", seed, 0), ("steps", steps, 1), ("slat_steps", slat_steps, 1)):
            check_size(name, least if value is None else value, least)
        if (checkpoint is None) == (preset is None):
            given = "neither" if preset is None else "both"
            raise ValueError(f"checkpoint: expected --checkpoint or --preset, whose weights are needed, given {given}")
        for photo, mask in pairs:
            load_photo(photo, mask)  # what is wrong with them is said before models are compiled
        if checkpoint is None:
            source = preset_source(preset, depth_model=has_random(depth_model))
        else:
            source = CheckpointSource(checkpoint, depth_model=depth_model)
        for note in getattr(source, "notes", ()):
            say(note)
        folder = artifacts or default_folder(source.label(precision))
        found = calibrated(
            source,
            folder,
            pairs,
            precision,
            seed=seed,
            steps=steps,
            slat_steps=slat_steps,
            on_model=telling_models(tell),
            on_progress=lambda progress: tell(progress.stage, progress.done, progress.total),
        )
    rows = {name: f"{model.layers} of {model.of} integer layers" for name, model in found.items()}
    console.print(shown.pairs_table(rows), highlight=False)
    shown.print_line(console, f"calibrated {folder}")
