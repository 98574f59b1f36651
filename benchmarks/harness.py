"""What every benchmark shares: paired timing against peers, the measured peak, checks first, a table and JSON.

    A case   our call, a check of its result, and peers that do the same work
    A round  peak, ours, peak, peer, peer, ...: one turn each, in this order, again and again, so that whatever else the
             machine does falls on all of them alike. A turn is the median of a few calls after one that is not timed.
    A row    medians over the rounds; a ratio is the median of the ratios within rounds, not a ratio of medians

A speed is reported only for a result that was checked, before the timing and after it. `benchmarks.sparse_conv` shows a
benchmark built on this:

    bench = Benchmark("sparse_conv", parse_options("Sparse convolution against spconv."))
    bench.run("subm3_nut64_c64", lambda: Case(...))
    sys.exit(bench.finish())
"""

import argparse
import contextlib
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from sparse_ops.transform.memory import measured_memory
from tests.tolerance import Comparison
from tir_kernels.cpu import peak  # the package also lets TVM's pool use all cores, before it starts
from tir_kernels.cpu.isa import Isa, host_target
from tir_kernels.cpu.threads import threads

from . import scaling

TURN_SECONDS = 0.02  # calls of one turn take at least this long together ...
TURN_CALLS = 15  # ... unless there are this many of them
LONG_CALL = 0.3  # seconds; a longer call gets no untimed one before it
LONG_ROUND = 3.0  # seconds; of longer rounds, 3 are enough
FULL = (4.0, 5, 25)  # a case's rounds go on for these seconds, but are at least and at most this many
QUICK = (0.8, 3, 7)
LONG = (0.0, 2, 2)  # for cases that say so
SPREAD_RUNS = 3  # of a case whose tasks are timed one by one
QUICK_SECONDS = 42.0  # with --quick no case starts later than this: on a busy machine a minute is a minute
STARTED = time.perf_counter() - time.process_time()  # about when the process did

M_ARENA_MAX = -8  # of glibc's mallopt
with contextlib.suppress(OSError, AttributeError, TypeError):
    # One heap for all threads: of others, glibc's malloc_trim does not give back everything, which `measured_memory` relies on.
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


class WrongResult(Exception):
    """A result that differs from its reference, or that nothing was compared with."""


@dataclass
class Options:
    """Command line of a benchmark. `only`: run only the cases whose names contain this. `scaling`: not times, but how
    far kernels can be spread over cores, see `benchmarks.scaling`."""

    quick: bool = False
    json: Path | None = None
    only: str = ""
    scaling: bool = False


@dataclass
class Peer:
    """Another way to do a case's work.

    `prepare` runs before every turn and is not timed (it sets the number of threads, say). `check` works as that of
    a case; without one only the time is used, which is right only for a peer whose results are known to be wrong.
    `own_pool`: whether it computes on TVM's threads, as ours does; a turn on other threads waits until those of the
    last one sleep. `memory`: whether to measure its peak memory as well.
    """

    call: Callable[[], object]
    check: Callable[[object], Iterable[Comparison]] | None = None
    prepare: Callable[[], None] | None = None
    own_pool: bool = False
    memory: bool = False


@dataclass
class Case:
    """One line of a benchmark.

    `ours`: the timed call. `check(result)`: comparisons with a reference, at least one and none empty. `flops`: useful
    floating-point operations, 0 where speed is not arithmetic. `facts`: more entries for the row, such as voxels; a check
    may add to them. `long`: a call takes many seconds, so that two rounds have to do, and memory is that of the first call.
    """

    dtype: str
    ours: Callable[[], object]
    check: Callable[[object], Iterable[Comparison]]
    peers: dict[str, Peer] = field(default_factory=dict)
    flops: float = 0.0
    facts: dict = field(default_factory=dict)
    long: bool = False


def parse_options(description: str, arguments: list[str] | None = None) -> Options:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a subset with fewer repeats, within a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows to FILE")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="run only cases whose names contain this")
    parser.add_argument("--scaling", action="store_true", help="how far kernels can be spread over 2 to 64 cores, not times")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.scaling:
        os.environ["SPARSE_OPS_CACHE"] = "off"  # what is compiled to be observed is for nobody else
    return options


def require_right(what: str, comparisons: Iterable[Comparison]) -> None:
    """WrongResult unless there are comparisons, none of them of nothing, and all are within their bounds."""
    comparisons = list(comparisons)
    if not comparisons or any(0 in found.shape for found in comparisons):
        raise WrongResult(f"{what}: nothing was compared with a reference, so no speed is reported")
    for found in comparisons:
        if not found.ok:
            raise WrongResult(
                f"{what}: {found.name} {list(found.shape)}: {found.problem} "
                f"(max error {found.max_error:.3e}, relative L2 {found.l2_error:.3e}, bound {found.bound:.3e})"
            )


def settle(most: float = 0.5) -> None:
    """Wait until this process computes nothing: thread pools spin for a while after a call (TVM's some 0.2 s)."""
    end = time.perf_counter() + most
    while time.perf_counter() < end:
        cpu, wall = time.process_time(), time.perf_counter()
        time.sleep(0.002)
        if time.process_time() - cpu < 0.25 * (time.perf_counter() - wall):
            return


@dataclass
class _Turns:
    """One participant of the rounds and its times, in seconds."""

    call: Callable[[], object]
    prepare: Callable[[], None] | None = None
    own_pool: bool = True
    times: list[float] = field(default_factory=list)
    last: float = 0.0  # seconds of the last single call
    result: object = None

    def first(self):
        """An untimed call, which returns the result."""
        if self.prepare:
            self.prepare()
        return self._once()

    def _once(self):
        self.result = None  # memory of the last result goes back before the next call
        start = time.perf_counter()
        self.result = self.call()
        self.last = time.perf_counter() - start
        return self.result

    def take(self) -> None:
        """One turn: the median of a few calls."""
        if self.prepare:
            self.prepare()
        if self.last < LONG_CALL:
            self._once()
        calls = []
        while not calls or (sum(calls) < TURN_SECONDS and len(calls) < TURN_CALLS):
            self._once()
            calls.append(self.last)
        self.times.append(statistics.median(calls))


class _PeakTurns(_Turns):
    """The peak takes turns like everyone else; `times` are GFLOP/s. The longer our call takes, the longer a turn."""

    def __init__(self, dtype: str, ours: _Turns):
        super().__init__(call=lambda: peak.measure_peak(dtype, seconds=min(max(ours.last / 4, 0.01), 0.1)))

    def take(self) -> None:
        self.times.append(self.call())


@contextlib.contextmanager
def _no_collection():
    """Python's garbage collector waits until a measurement is over."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run_rounds(participants: list[_Turns], limits: tuple[float, int, int]) -> None:
    """Let everyone take turns until the medians are worth something: `FULL`, `QUICK` or `LONG`."""
    budget, least, most = limits
    start, rounds = time.perf_counter(), 0
    with _no_collection():
        while rounds < most:
            on_own_pool = True
            for participant in participants:
                if not (on_own_pool and participant.own_pool):
                    settle()
                on_own_pool = participant.own_pool
                participant.take()
            if not on_own_pool:
                settle()
            rounds += 1
            spent = time.perf_counter() - start
            if spent >= budget and (rounds >= least or (rounds >= 3 and spent / rounds > LONG_ROUND)):
                break


def peak_mb(call: Callable[[], object], prepare: Callable[[], None] | None = None) -> float | None:
    """MB (10^6 bytes) that a call adds to this process at its peak, see `measured_memory`."""
    rise = measured_memory(call, prepare)
    return None if rise is None else rise / 1e6


def machine_info(quick: bool) -> dict:
    """What the figures were measured on."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    target = host_target()
    name = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": name,
        "llvm_cpu": str(target.attrs["mcpu"]),
        "isa": Isa.of(target).name,
        "cores": cores,
        "threads": threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "tvm": version("apache-tvm"),
        "torch": version("torch"),
        "spconv": version("spconv"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "quick": quick,
    }


def write_json(path: Path, content: dict) -> None:
    """Write `content` to `path` in one step: a reader sees the old file or the new one."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def default_console() -> Console:
    """Standard output; a file or a pipe has no width, and tables would be cut to 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


class Benchmark:
    """Runs cases, collects rows and reports them."""

    def __init__(self, name: str, options: Options, console: Console | None = None):
        self.name, self.options = name, options
        self.console = console or default_console()
        self.machine = machine_info(options.quick)
        self.rows: list[dict] = []
        self.spread: list[dict] = []  # with `--scaling`
        self.failures: list[str] = []
        self.skipped: list[str] = []
        isa = Isa.of(host_target())
        # where bf16 or int8 has no instruction of its own, its peak is that of fp32, and one measurement serves both
        self._peak_of = {dtype: dtype if peak.uses_dot(isa, dtype) else "float32" for dtype in peak.DTYPES}
        self._peaks: dict[str, list[float]] = {dtype: [] for dtype in set(self._peak_of.values())}

    def wants(self, name: str) -> bool:
        """Whether a case of this name was asked for."""
        return self.options.only in name

    def run(self, name: str, make: Callable[[], Case]) -> dict | None:
        """Measure the case that `make` builds; its row, or None.

        Nothing runs that `--only` excludes or for which `--quick` has no time left. A wrong result or an error ends
        this case, not the benchmark; `finish` then returns 1.
        """
        if not self.wants(name):
            return None
        if self.options.quick and time.perf_counter() - STARTED > QUICK_SECONDS:
            self.skipped.append(name)
            return None
        try:
            if self.options.scaling:
                return self._spread(name, make)
            row = self._measure(name, make())
        except WrongResult as error:
            return self._fail(name, str(error))
        except Exception as error:  # the other cases may still tell something
            traceback.print_exc()
            return self._fail(name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        self.rows.append(row)
        ratios = "  ".join(f"{peer} {ratio:.2f}x" for peer, ratio in row["ratios"].items())
        line = f"[{time.perf_counter() - STARTED:6.1f} s] {name} {row['dtype']}  {row['ours_ms']:.3f} ms  {ratios}"
        print(line.rstrip(), file=sys.stderr, flush=True)
        return row

    def _fail(self, name: str, message: str) -> None:
        self.failures.append(f"{name}: {message}")
        print(f"FAILED {self.failures[-1]}", file=sys.stderr, flush=True)

    def _spread(self, name: str, make: Callable[[], Case]) -> None:
        """Note how far the kernels of our call can be spread over cores."""
        with scaling.observing() as observer:
            case = make()
            require_right(name, case.check(case.ours()))
            runs = []
            for _ in range(SPREAD_RUNS):
                observer.calls.clear()
                case.ours()
                runs.append(list(observer.calls))
        self.spread += scaling.rows_of(name, case.dtype, scaling.shortest(runs))
        print(f"[{time.perf_counter() - STARTED:6.1f} s] {name} {case.dtype}", file=sys.stderr, flush=True)

    def _measure(self, name: str, case: Case) -> dict:
        everyone = {"ours": Peer(case.ours, case.check, own_pool=True, memory=True)} | case.peers
        turns = {who: _Turns(each.call, each.prepare, each.own_pool) for who, each in everyone.items()}
        ours, memory = turns["ours"], {}
        for who, each in everyone.items():
            if case.long and each.memory:
                memory[who] = peak_mb(turns[who].first)
            else:
                turns[who].first()
            if each.check:
                require_right(who, each.check(turns[who].result))
        # that of integers takes its turns only beside what multiplies them
        peaks = {dtype: _PeakTurns(dtype, ours) for dtype in self._peaks if dtype != "int8" or case.dtype == "int8"}
        limits = LONG if case.long else QUICK if self.options.quick else FULL
        run_rounds([*peaks.values(), ours, *peaks.values(), *(turns[peer] for peer in case.peers)], limits)
        for who, each in everyone.items():
            if each.check:
                require_right(f"{who}, after the timing", each.check(turns[who].result))
            turns[who].result = None
        for dtype, measured in peaks.items():
            self._peaks[dtype] += measured.times
        if not case.long:
            memory = {who: peak_mb(each.call, each.prepare) for who, each in everyone.items() if each.memory}

        seconds = statistics.median(ours.times)
        near = statistics.median(peaks[self._peak_of.get(case.dtype, "float32")].times)
        gflops = case.flops / seconds / 1e9 if case.flops else None
        row = {
            "case": name,
            "dtype": case.dtype,
            "ours_ms": seconds * 1e3,
            "peers": {peer: statistics.median(turns[peer].times) * 1e3 for peer in case.peers},
            "gflops": gflops,
            "peak_fraction": gflops / near if gflops else None,
            "peak_mb": memory.pop("ours"),
            "peers_peak_mb": memory,
            "ratios": {peer: self.ratio(turns[peer].times, ours.times) for peer in case.peers},
            "best_ms": min(ours.times) * 1e3,
            "peak_gflops": near,
            "rounds": len(ours.times),
        }
        return row | case.facts

    @staticmethod
    def ratio(theirs: list[float], ours: list[float]) -> float:
        """How many times as long a peer takes: the median over pairs."""
        return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))

    def peak_gflops(self) -> dict[str, float | None]:
        """The median of all measurements of the peak; measured now when there was no case."""
        for dtype, found in self._peaks.items():
            if not found:
                self._peaks[dtype] = [peak.measure_peak(dtype) for _ in range(5)]
        return {dtype: statistics.median(self._peaks[of]) for dtype, of in self._peak_of.items()}

    def report(self) -> dict:
        """What `--json` writes."""
        return {"machine": self.machine | {"peak_gflops": self.peak_gflops()}, "rows": self.rows or self.spread}

    def finish(self) -> int:
        """Print the table and the failures, write the JSON; the exit code, 1 when a result was wrong."""
        report = self.report()
        machine = report["machine"]
        units = {"int8": "GOP/s" if self._peak_of["int8"] == "int8" else "GFLOP/s, without integers by which it gains"}
        peaks = ", ".join(
            f"{dtype} {value:.0f} {units.get(dtype, 'GFLOP/s')}" for dtype, value in machine["peak_gflops"].items()
        )
        self._print(f"\n{machine['cpu']} ({machine['llvm_cpu']}, {machine['isa']}), {machine['cores']} cores")
        self._print(f"TVM {machine['tvm']} ({machine['threads']} threads), torch {machine['torch']}", end=", ")
        self._print(f"spconv {machine['spconv']}; load average at the start {machine['load_average']}")
        self._print(f"peak, median over the run: {peaks}")
        if (machine["load_average"] or 0) > machine["cores"] / 2:
            # OpenMP's threads spin at barriers, so that a peer may lose far more than its share
            self._print("other work was running: ratios to peers with several threads are not to be relied on")
        if self.options.scaling:
            wide = max(scaling.WIDTH, self.console.width)
            Console(file=self.console.file, width=wide).print(scaling.table(self.spread), highlight=False)
        else:
            self.console.print(self.table(), highlight=False)
        if self.options.json:
            write_json(self.options.json, report)
        if self.skipped:
            self._print(f"not run, as --quick was out of time: {', '.join(self.skipped)}")
        if not self.rows and not self.spread and not self.failures and not self.skipped:
            self.failures.append(f"no case has {self.options.only!r} in its name")
        for failure in self.failures:
            self._print(f"FAILED {failure}", style="red")
        return 1 if self.failures else 0

    def _print(self, text: str, **style) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False, **style)

    def table(self) -> Table:
        """The rows for people: peers with their time and how many times as long as ours they take."""
        table = Table(title=f"benchmarks.{self.name}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        paired = any(row["peers"] for row in self.rows)
        columns = [
            "case",
            "dtype",
            "ours ms",
            "GFLOP/s",
            "% peak",
            "MB",
            *(["peers: ms, times ours"] if paired else []),
        ]
        for column in columns:
            left = column in ("case", "dtype") or column.startswith("peers")
            table.add_column(column, justify="left" if left else "right", no_wrap=not column.startswith("peers"))
        for row in self.rows:
            peers = [f"{peer} {theirs:.2f} {row['ratios'][peer]:.1f}x" for peer, theirs in row["peers"].items()]
            table.add_row(
                row["case"],
                {"float32": "fp32", "bfloat16": "bf16"}.get(row["dtype"], row["dtype"]),
                f"{row['ours_ms']:.3f}",
                "" if row["gflops"] is None else f"{row['gflops']:.0f}",
                "" if row["peak_fraction"] is None else f"{100 * row['peak_fraction']:.0f}",
                "" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}",
                *(["  ".join(peers)] if paired else []),
            )
        return table


def arrays(result: object) -> list[np.ndarray]:
    """The numpy arrays of a result: TVM, torch or numpy tensors, nested in tuples, lists or TVM's arrays."""
    if isinstance(result, np.ndarray):
        return [result]
    if hasattr(result, "numpy"):
        return [result.numpy()]
    return [array for part in result for array in arrays(part)]
