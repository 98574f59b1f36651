"""`sam3d-tvm compile`: the models of a checkpoint for this CPU."""

from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli.options import DepthModel, Device, Precision, Preset, Target, Threads, Verbose, begin, open_pipeline


def compile_(
    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint folder with pipeline.yaml, as published.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the compiled models.", show_default="one in the user's cache"),
    ] = None,
    preset: Preset = None,
    depth_model: DepthModel = None,
    precision: Precision = None,
    target: Target = None,
    device: Device = None,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Compiles the models of a checkpoint for this CPU, once. Needs torch; generating does not."""
    begin(threads, device)
    if output is not None:
        from sam3d_tvm.run_folder import missing_folders

        missing_folders(output)  # nothing is in the way
    console = shown.output()
    with shown.without_warnings(verbose), shown.bars() as tell:
        if checkpoint is None and preset is None:
            raise ValueError("checkpoint: expected a checkpoint folder, or --preset, given neither")
        pipeline = open_pipeline(checkpoint, output, preset, precision, tell, target=target, depth_model=depth_model)
    rows = {name: f"{pipeline.artifacts.weight_bytes(name) / 2**20:,.1f} MiB" for name in pipeline.config.models}
    console.print(shown.pairs_table(rows), highlight=False)
    shown.print_line(console, f"compiled into {pipeline.artifacts.folder}")
