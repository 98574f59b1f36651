"""What the command line shows: results on the standard output; progress of stages with the time left, notes and errors, each in
one line, on the standard error. Nothing here fails where it cannot be written to: a closed pipe ends no work.

On a terminal progress is a bar for every stage. Elsewhere it is a line when a stage begins, one when it ends, and one a minute
in between, without control codes.
"""

import contextlib
import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

MINUTE = 60.0  # between two lines of a stage

Tell = Callable[[str, int, int], None]


class Stream(io.TextIOBase):
    """The standard output or error, as it is when it is written to; what it does not take is dropped."""

    def __init__(self, name: str):
        self.name = name

    @property
    def _stream(self) -> Any:
        if self.name == "stderr" and _kept is not None:
            return _kept
        return getattr(sys, self.name) or io.StringIO()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            _to_nowhere(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            _to_nowhere(self._stream)


_kept: Any = None  # the standard error of people, where that of libraries leads nowhere
OUT, ERR = Stream("stdout"), Stream("stderr")


def _to_nowhere(stream: Any) -> None:
    """What a stream still holds, and would fail to write when the process ends, goes nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """The standard streams are open meanwhile, or files of ours would get their numbers, and what libraries print; and whatever
    cannot be written to them in the end is dropped."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 (for the rest of the process)
    try:
        yield
    finally:
        OUT.flush()
        ERR.flush()


def output() -> Console:
    """Where results are shown."""
    return _Console(file=OUT)


def errors() -> Console:
    """Where everything else is shown."""
    return _Console(file=ERR)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The work goes on."""


def say_error(message: str) -> None:
    """Says what is wrong in one red line."""
    line = " ".join(f"error: {message}".split())
    print_line(errors(), line, "red")


def say_note(message: str, console: Console | None = None) -> None:
    """Says something worth knowing in one line."""
    line = " ".join(f"note: {message}".split())
    print_line(console or errors(), line)


@contextlib.contextmanager
def bars() -> Iterator[Tell]:
    """Shows the progress of stages; yields what to tell of it: the name of a stage, and how many of how many parts are done.
    Notices of the block are shown too."""
    from sam3d_tvm.notices import heard_by

    console = errors()
    shown = _bars(console) if ERR.isatty() and not console.is_dumb_terminal else _lines(console)
    with shown as tell, heard_by(lambda message: say_note(message, console)):
        yield tell


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Tell]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # What libraries print is not taken through the console, whose stream is the one that they print to.
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        tasks: dict[str, int] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield tell


@contextlib.contextmanager
def _lines(console: Console) -> Iterator[Tell]:
    stages: dict[str, _Stage] = {}
    lock, ended = threading.Lock(), threading.Event()

    def tell(stage: str, done: int, total: int) -> None:
        with lock:
            if stage not in stages:
                stages[stage] = _Stage(stage, total)
                if done < total:
                    print_line(console, f"{stage} ...")
            stages[stage].done = done
            if done >= total and not stages[stage].ended:
                stages[stage].ended = True
                print_line(console, f"{stage}: done in {clock(stages[stage].elapsed)}")

    def every_minute() -> None:
        while not ended.wait(MINUTE / 4):
            with lock:
                for stage in stages.values():
                    if not stage.ended and time.monotonic() - stage.said >= MINUTE:
                        stage.said = time.monotonic()
                        print_line(console, stage.line())

    watcher = threading.Thread(target=every_minute, daemon=True)
    watcher.start()
    try:
        yield tell
    finally:
        ended.set()
        watcher.join()


class _Stage:
    """A stage that lines are printed of."""

    def __init__(self, name: str, total: int):
        self.name, self.total, self.done, self.ended = name, total, 0, False
        self.begun = self.said = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def line(self) -> str:
        """How far it is, and how long it may still take if all parts take alike."""
        if self.total == 1:
            return f"{self.name}: {clock(self.elapsed)} so far"
        left = f"about {clock(self.elapsed / self.done * (self.total - self.done))} left" if self.done else "time left unknown"
        return f"{self.name}: {self.done} of {self.total}, {clock(self.elapsed)} so far, {left}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def print_line(console: Console, line: str, style: str | None = None) -> None:
    """Prints a line as it is, however wide."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def without_warnings(verbose: bool) -> Iterator[None]:
    """Nothing from libraries on the standard error meanwhile, where TVM tells of every file it loads, unless `verbose`: neither
    what they write there nor Python's warnings. What this module shows goes there as before.

    Errors are exceptions, and are shown.
    """
    global _kept
    if verbose or _kept is not None:
        yield
        return
    ERR.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    if _number(sys.stderr) == 2:
        _kept = os.fdopen(os.dup(kept), "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ERR.flush()
        if _kept is not None:
            with contextlib.suppress(OSError):
                _kept.close()
            _kept = None
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _number(stream: Any) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


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


def integers_table(verdicts: Sequence) -> Table:
    """Relative L2 of the components with integer layers, before and after calibration."""
    table = Table(box=box.SIMPLE_HEAD, title="relative L2 before and after calibration", title_justify="left")
    table.add_column("component")
    for column in ("integer layers", "example", "calibrated", "outliers", "calibrated"):
        table.add_column(column, justify="right")
    for verdict in verdicts:
        found = verdict.integers
        errors = (found.before, found.after, found.outliers_before, found.outliers_after)
        row = ["" if error is None else f"{error:.2%}" for error in errors]
        table.add_row(verdict.component, f"{found.layers} in {verdict.precision}", *row)
    return table
