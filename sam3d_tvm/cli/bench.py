"""`sam3d-tvm bench`: time and memory of every stage."""

from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli.options import (
    Artifacts,
    Checkpoint,
    Device,
    Json,
    Precision,
    Preset,
    Target,
    Threads,
    Verbose,
    begin,
    open_pipeline,
)


def bench(
    checkpoint: Checkpoint = None,
    artifacts: Artifacts = None,
    preset: Preset = None,
    precision: Precision = None,
    own_voxels: Annotated[
        bool, typer.Option("--own-voxels", help="Voxels that the structure comes to, in place of a nut of 19,072.")
    ] = False,
    json: Json = False,
    target: Target = None,
    device: Device = None,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Time and peak memory of every stage: three steps of each generator are measured, all are counted."""
    begin(threads, device)
    from dataclasses import asdict
    from json import dumps

    with shown.without_warnings(verbose):
        from sam3d_tvm.bench import measure, total
        from sam3d_tvm.occupancy import demo_occupancy

        with shown.bars() as tell:
            pipeline = open_pipeline(checkpoint, artifacts, preset, precision, tell, target=target)
            tell("measuring", 0, 1)
            costs = measure(pipeline.artifacts, None if own_voxels else demo_occupancy())
            tell("measuring", 1, 1)
    if json:
        typer.echo(dumps([asdict(cost) for cost in (*costs, total(costs))], indent=1))
    else:
        shown.output().print(shown.cost_table(costs, total(costs)))
