"""`sam3d-tvm info`: versions, this machine, and a folder of compiled models."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli.options import Threads, begin, say_integers


def info(
    artifacts: Annotated[Path | None, typer.Argument(help="A folder of compiled models to tell about, too.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List in which numbers each of their layers multiplies.")] = False,
    threads: Threads = None,
) -> None:
    """Versions, what kernels are built for on this machine, and what a folder of compiled models takes."""
    begin(threads)
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
    listed: list[str] = []
    if layers and artifacts is None:
        raise ValueError("layers: expected a folder of compiled models, given none")
    if artifacts is not None:
        with shown.without_warnings(False), shown.bars():
            from sam3d_tvm.memory import TYPICAL_VOXELS
            from sam3d_tvm.pipeline import Pipeline

            pipeline = Pipeline.from_artifacts(artifacts)
            say_integers(pipeline.artifacts)
        rows["precision"] = pipeline.artifacts.precision
        for name, value in pipeline.memory().items():
            weights = pipeline.artifacts.weight_bytes(name)
            kinds = {layer: _runs_in(spec) for layer, spec in pipeline.artifacts.layers(name).items()}
            counts = Counter(kinds.values())
            rows[name] = (
                f"{weights / 2**20:,.1f} MiB of weights, {value / 2**30:.2f} GiB estimated for {TYPICAL_VOXELS:,} voxels; "
                f"layers: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}"
            )
            listed += [f"{name}: {layer}: {kind}" for layer, kind in kinds.items()] if layers else []
    console = shown.output()
    console.print(shown.pairs_table(rows), highlight=False, markup=False, soft_wrap=True)
    for line in listed:
        shown.print_line(console, line)


def _runs_in(spec) -> str:
    return f"{spec.runs_in} calibrated" if spec.apart else spec.runs_in
