"""A campaign: cases in a process of their own, what they found, and how often everything was drawn."""

import argparse
import faulthandler
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

PATIENCE = 300.0  # seconds without a word from a case, compiling included
STARTING = 300.0  # and before the first
EVERY = 60.0  # seconds between words on how far it is
ROWS = (0, 1, 2, 64, 512, 1 << 30)  # classes of sizes in the table


@dataclass
class Report:
    """What cases were made of, and which failed. `command`: the module that runs them; `known`: all that can be drawn."""

    cases: int = 0
    counts: dict[str, Counter] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)  # case, words
    seconds: float = 0.0
    plant: str = ""
    command: str = "tests.fuzz"
    known: Callable[[], dict[str, list[str]]] = lambda: vocabulary()

    def add(self, counted: dict[str, list[str]]) -> None:
        """Count what a case was made of."""
        for group, names in counted.items():
            self.counts.setdefault(group, Counter()).update(names)

    def __str__(self) -> str:
        lines = [f"{self.cases} cases in {self.seconds:.0f} s, {len(self.failures)} failed"]
        for group, counter in self.counts.items():
            drawn = ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=lambda pair: -pair[1]))
            lines.append(f"{group}: {drawn}")
        missing = {
            group: [name for name in names if name not in self.counts.get(group, ())] for group, names in self.known().items()
        }
        never = "; ".join(f"{group}: {', '.join(names)}" for group, names in missing.items() if names)
        lines.append(f"never drawn: {never or 'nothing'}")
        lines += [f"{self.line(case)}   # {words.splitlines()[0]}" for case, words in self.failures]
        return "\n".join(lines)

    def line(self, case: str) -> str:
        """The command line that runs one case again."""
        return reproduction(case, self.plant, self.command)


def reproduction(case: str, plant: str = "", command: str = "tests.fuzz") -> str:
    """The command line that runs one case again."""
    return f"python -m {command} --case {case}{f' --plant {plant}' if plant else ''}"


def counted(network, operations: list[str]) -> dict[str, list[str]]:
    """What a case was made of."""
    rows = network.cloud.rows
    dims = network.palette.dims
    return {
        "steps": [step.kind for step in network.steps],
        "operations": operations,
        "dtypes": [network.palette.dtype],
        "arrays": [network.kind],
        "dimensions": [str(dims)],
        "rows": [next(f"up to {most}" if most < 1 << 30 else "more" for most in ROWS if rows <= most)],
        "clouds": [
            network.cloud.form,
            *(["negative"] if network.cloud.negative else []),
            *(["NaN and infinities"] if network.special else []),
        ],
    }


def options(module: str, description: str) -> argparse.ArgumentParser:
    """The options of every campaign, `python -m module`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--minutes", type=float, help="how long; 2 unless --cases is given")
    parser.add_argument("--cases", type=int, help="how many, whatever time they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--case", metavar="SEED:INDEX", help="one case, in this process: what a failure prints")
    parser.add_argument("--plant", metavar="MODULE", default="", help="a module to import first: a bug that should be found")
    return parser


def main(given: argparse.Namespace, run: Callable) -> int:
    """Runs a campaign as its options say, and returns the exit code. run: as `run`, of its first arguments."""
    minutes = 2.0 if given.minutes is None and given.cases is None else given.minutes

    def say(words: str) -> None:
        print(words, flush=True)

    report = run(given.seed, say, given.first, given.cases, minutes, given.plant)
    print(report)
    return 1 if report.failures else 0


def run(
    seed: int,
    say: Callable[[str], None],
    first: int = 0,
    cases: int | None = None,
    minutes: float | None = None,
    plant: str = "",
    patience: float = PATIENCE,
    work: Callable | None = None,
    report: Report | None = None,
) -> Report:
    """Cases from `first` on, so many or for so many minutes, in a process that is replaced when it dies or hangs.

    say: takes each failure when it is found. plant: a module to import there first, which plants a bug. work, report: what
    runs the cases, as `work_on_networks` does, and what counts them, of another campaign.
    """
    report = Report() if report is None else report
    report.plant, start, following = plant, time.monotonic(), first
    spoken, work = start, work_on_networks if work is None else work
    end = float("inf") if minutes is None else start + 60 * minutes
    last = None if cases is None else first + cases

    def fail(index: int, words: str) -> None:
        report.failures.append((f"{seed}:{index}", words))
        say(f"{report.line(f'{seed}:{index}')}\n{words}\n")

    while (last is None or following < last) and time.monotonic() < end:
        for index, counts, words in _cases(work, seed, following, last, end - time.monotonic(), plant, patience):
            report.cases, following = report.cases + 1, index + 1
            report.add(counts)
            if words is not None:
                fail(index, words)
            if time.monotonic() - spoken > EVERY:
                spoken = time.monotonic()
                say(f"{report.cases} cases in {spoken - start:.0f} s, {len(report.failures)} failed")
    report.seconds = time.monotonic() - start
    return report


def _cases(work: Callable, seed: int, first: int, last: int | None, seconds: float, plant: str, patience: float):
    """What one process says of each case: its index, what it was made of, and what it found, if anything.

    Ends with the process: after the last case or the time, or with the case in which it died or was killed for being silent.
    """
    here, there = multiprocessing.get_context("spawn").Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(there, seed, first, last, seconds, plant))
    worker.start()
    there.close()
    current, fault = None, None
    try:
        while fault is None:
            if not _speaks(here, STARTING if current is None else patience):
                os.kill(worker.pid, signal.SIGUSR1)  # says where it is
                worker.join(2)
                worker.kill()
                fault = f"hangs: no word for {patience:.0f} s"
                break
            word, *rest = here.recv()
            if word == "start":
                (current,) = rest
            elif word == "done":
                yield current, *rest
                current = None
            else:
                return
    except EOFError:
        worker.join()
        fault = f"the process died, exit code {worker.exitcode}"
    finally:
        worker.join(60)
    if current is None:
        raise RuntimeError(f"between cases, behind {seed}:{first}: {fault}")
    yield current, {}, fault


def _speaks(pipe, seconds: float) -> bool:
    """Whether something comes through a pipe. While this process is stopped, time does not count: so is the other one."""
    return any(pipe.poll(min(1.0, seconds)) for _ in range(max(1, round(seconds))))


def work_on_networks(pipe, seed: int, first: int, last: int | None, seconds: float, plant: str) -> None:
    """Run cases, and say through the pipe which one runs."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if plant:
        import_module(plant)
    from .network import Network

    end, index = time.monotonic() + seconds, first
    while (last is None or index < last) and time.monotonic() < end:
        pipe.send(("start", index))
        found, operations, network = None, [], None
        try:
            network = Network.draw(seed, index)
            operations = one(network)
        except Exception as error:
            found = f"{words_of(error)}\n{network}"
        pipe.send(("done", {} if network is None else counted(network, operations), found))
        index += 1
    pipe.send(("end",))
    pipe.close()


def words_of(error: Exception) -> str:
    """What was found; of an exception that nobody expected, its type first and where it comes from."""
    if type(error).__name__ == "Failure":
        return str(error)
    return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"


def one(network) -> list[str]:
    from .operations import run_case

    return run_case(network)


def vocabulary() -> dict[str, list[str]]:
    """All that can be drawn."""
    from tir_kernels.spec import pool

    from .cloud import DTYPES, FORMS
    from .network import KINDS
    from .operations import OPERATIONS
    from .steps import STEPS, Convolution, Pool

    variants = ["", ", chosen", ", grouped", ", chosen, grouped"]
    convolutions = [f"convolution, {form}{variant}" for form in ("subm", "strided", "transposed") for variant in variants]
    return {
        "steps": [
            *convolutions,
            *(f"pool, {mode}{variant}" for mode in pool.MODES for variant in ("", ", chosen")),
            *(step.__name__ for step in STEPS if step not in (Convolution, Pool)),
        ],
        "operations": [operation.__name__ for operation in OPERATIONS],
        "dtypes": [*DTYPES],
        "arrays": [*KINDS],
        "dimensions": ["1", "2", "3"],
        "clouds": [*FORMS, "negative", "NaN and infinities"],
    }


def reproduce(case: str) -> bool:
    """Run one case here, with all its words; whether it was right."""
    from .network import Network

    seed, index = map(int, case.split(":"))
    network = Network.draw(seed, index)
    print(network, flush=True)
    try:
        done = one(network)
    except Exception as error:
        print(f"failed: {words_of(error)}")
        return False
    print(f"right, with {', '.join(done) or 'no operation'}")
    return True
