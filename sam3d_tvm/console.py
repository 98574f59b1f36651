"""What the command line shows: progress of stages with the time left, tables, errors in one line."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


def say_error(message: str) -> None:
    """Says what is wrong in one red line."""
    line = " ".join(f"error: {message}".split())
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for every stage; yields what to tell of it: its name, and how many of how many parts are done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, int] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        yield tell


@contextlib.contextmanager
def without_warnings(verbose: bool) -> Iterator[None]:
    """Nothing from libraries on the standard error meanwhile, where TVM tells of every file it loads, unless `verbose`.

    Errors are exceptions, and are shown.
    """
    if verbose:
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def seconds_table(seconds: Mapping[str, float]) -> Table:
    """Seconds of every stage, and in all."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}")
    table.add_section()
    table.add_row("in all", f"{sum(seconds.values()):.2f}")
    return table


def pairs_table(rows: Mapping[str, str]) -> Table:
    """Names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def cost_table(costs: Sequence, total) -> Table:
    """Seconds, as measured and of all steps, and peak memory of every stage, see `bench`."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage")
    for column in ("measured s", "steps", "all steps s", "peak MiB"):
        table.add_column(column, justify="right")
    for cost in (*costs, total):
        if cost is total:
            table.add_section()
        peak = "" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**20:,.0f}"
        table.add_row(cost.stage, f"{cost.seconds:.2f}", str(cost.steps), f"{cost.total_seconds:.2f}", peak)
    return table


def verdict_table(verdicts: Sequence) -> Table:
    """Components against PyTorch, see `validate`."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("component")
    for column in ("shapes", "max error / scale", "relative L2", "PyTorch", "ours", "ratio", ""):
        table.add_column(column, justify="right")
    for verdict in verdicts:
        table.add_row(
            verdict.component,
            "equal" if verdict.shapes_equal else "differ",
            f"{verdict.max_error:.1e} < {verdict.max_error_bound:.0e}",
            f"{verdict.relative_l2:.1e} < {verdict.relative_l2_bound:.0e}",
            f"{verdict.torch_seconds * 1e3:.1f} ms",
            f"{verdict.seconds * 1e3:.1f} ms",
            f"{verdict.ratio:.2f}x",
            "ok" if verdict.ok else "FAILED",
            style=None if verdict.ok else "red",
        )
    return table
