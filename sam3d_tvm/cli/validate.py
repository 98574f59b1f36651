"""`sam3d-tvm validate`: every component against PyTorch."""

from typing import Annotated

import typer

from sam3d_tvm import console as shown
from sam3d_tvm.cli.options import FAILED, Json, Threads, begin


def validate(
    component: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    size: Annotated[
        str, typer.Option(help="tiny, or full: the size of SAM-3D-Objects, which takes minutes and 12 GB.")
    ] = "tiny",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, int8 or int7; PyTorch computes in float32 in any case.")
    ] = "float32",
    json: Json = False,
    threads: Threads = None,
) -> int:
    """Compares every compiled component with PyTorch: shapes, errors, time. Weights are random.

    Exits with 1 when a component fails. Needs torch.
    """
    begin(threads)
    from json import dumps

    from sam3d_tvm.notices import say
    from sam3d_tvm.validate import validate as verdicts
    from sparse_ops.transform.precision import QUANTIZED, features_of, gains

    found = []
    with shown.bars() as tell:
        stages: list[str] = []
        if precision in QUANTIZED and not gains(precision):
            say(f"{precision} gains nothing on this CPU: all layers are in {features_of(precision)}")

        def begin_stage(name: str | None) -> None:
            if stages:
                tell(stages[-1], 1, 1)
            if name is not None:
                stages.append(name)
                tell(name, 0, 1)

        for verdict in verdicts(component or (), size, precision, begin_stage):
            found.append(verdict)
        begin_stage(None)
    if json:
        typer.echo(dumps([verdict.as_json() for verdict in found], indent=1))
    else:
        shown.output().print(shown.verdict_table(found))
        if any(verdict.integers for verdict in found):
            shown.output().print(shown.integers_table([verdict for verdict in found if verdict.integers]))
    return 0 if all(verdict.ok for verdict in found) else FAILED
