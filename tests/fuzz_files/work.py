"""One case: a file of some kind, what befell it, and what its reader makes of it, in bounds of time and memory."""

import faulthandler
import os
import resource
import signal
import tempfile
import time
import traceback
import unicodedata
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from tests.fuzz.campaign import Report

SECONDS = 10.0  # of a case, of this process's time: others may use the machine
PATIENCE = 40.0  # without a word
WORDS = 8_000  # characters of a message
MEMORY = 1 << 30  # bytes beyond those at the start of a case
ADVICE = ("weights_only", "safe_globals", "allow_pickle", "fully trust", "trust the", "Trust the")


@dataclass
class FileReport(Report):
    """With the slowest cases and the largest."""

    slowest: tuple[float, str] = (0.0, "none")
    largest: tuple[int, str] = (0, "none")

    def add(self, counted: dict) -> None:
        measured = counted.pop("measured", None)
        if measured:
            case, seconds, memory = measured
            self.slowest = max(self.slowest, (seconds, case))
            self.largest = max(self.largest, (memory, case))
        super().add(counted)

    def __str__(self) -> str:
        slow, large = self.slowest, self.largest
        return f"{super().__str__()}\nslowest: {slow[0]:.2f} s, {slow[1]}; largest: {large[0] / 2**20:.0f} MiB, {large[1]}"


def vocabulary() -> dict[str, list[str]]:
    """All that can be drawn."""
    from tests.fuzz_files.kinds import KINDS
    from tests.fuzz_files.mutations import NAMES

    return {"files": [kind.name for kind in KINDS], "mutations": NAMES}


class Failure(Exception):
    """A case that ended otherwise than it should."""


def draw(seed: int, index: int):
    """The kind of a case, its file's bytes, and what befell them."""
    from tests.fuzz_files.kinds import KINDS
    from tests.fuzz_files.mutations import mutate

    kind = KINDS[index % len(KINDS)]
    rng = np.random.default_rng([seed, index])
    samples = kind.samples()
    data, done = mutate(rng, samples[int(rng.integers(len(samples)))], kind.form)
    return kind, data, done


def one(kind, data: bytes) -> str:
    """How a case ended: "read", by one of the readers at least, or "refused". Failure for anything else."""
    ended, spent = set(), []
    with tempfile.TemporaryDirectory() as folder:
        file = kind.place(Path(folder), data)
        for read in kind.reads if isinstance(kind.reads, tuple) else (kind.reads,):
            _limit(MEMORY)
            before, start = _reset_peak(), time.process_time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read(file)
                ended.add("read")
            except ValueError as error:
                _check_words(error, kind, file)
                ended.add("refused")
            finally:
                _limit(None)
            spent.append((time.process_time() - start, max(_peak() - before, 0)))
    one.measured = tuple(map(max, zip(*spent, strict=True)))
    seconds, memory = one.measured
    if seconds > SECONDS:
        raise Failure(f"took {seconds:.1f} s")
    if memory > MEMORY:
        raise Failure(f"took {memory / 2**20:,.0f} MiB")
    return min(ended)


def _check_words(error: ValueError, kind, file: Path) -> None:
    """Failure unless the message names the file, can be printed, and nothing in it or behind it advises what is unsafe."""
    words = str(error)
    if not any(name in words for name in (file.name, *kind.also)):
        raise Failure(f"a ValueError that does not name {file.name}: {words[:300]}") from error
    if control := [letter for letter in words if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"]:
        raise Failure(f"a message that no terminal should see: {control[0]!a} in {words[:500]!a}")
    if len(words) > WORDS:
        raise Failure(f"a message of {len(words):,} characters: {words[:300]}")
    links = [error]
    while links:
        link = links.pop()
        if isinstance(link, MemoryError):
            raise Failure(f"asked for more memory than there is: {words[:300]}") from error
        if found := [advice for advice in ADVICE if advice in str(link)]:
            raise Failure(f"advice that is unsafe, {found[0]!r}: {link}") from error
        links += [inner for inner in (link.__cause__, link.__context__) if inner is not None]


def _limit(more: int | None) -> None:
    """This process may map so many bytes more than now; None: as many as it likes."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = hard if more is None else _status("VmSize") + more + (256 << 20)  # allocators map more than they are asked for
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _reset_peak() -> int:
    """Bytes of memory in use; the peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    """Bytes that the kernel counts of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def work_on_files(pipe, seed: int, first: int, last: int | None, seconds: float, plant: str) -> None:
    """Run cases, and say through the pipe which one runs."""
    words = os.fdopen(os.dup(2), "w")
    faulthandler.enable(words)
    faulthandler.register(signal.SIGUSR1, words, all_threads=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries of pictures write there what they think of them
    warnings.simplefilter("ignore")
    if plant:
        import_module(plant)
    from tests.fuzz_files.kinds import KINDS

    for kind in KINDS:  # imports and caches are no case's time or memory
        for sample in kind.samples():
            one(kind, sample)
    end, index = time.monotonic() + seconds, first
    while (last is None or index < last) and time.monotonic() < end:
        pipe.send(("start", index))
        words, counts = run_case(seed, index)
        pipe.send(("done", counts, words))
        index += 1
    pipe.send(("end",))
    pipe.close()


def run_case(seed: int, index: int) -> tuple[str | None, dict]:
    """What was found, if anything, and what the case was made of."""
    kind, data, done = draw(seed, index)
    counts = {"files": [kind.name], "mutations": done}
    try:
        counts["ended"] = [f"{kind.name} {one(kind, data)}"]
        counts["measured"] = (f"{seed}:{index} ({kind.name}, {', '.join(done)})", *one.measured)
    except Failure as failure:
        return f"{kind.name}: {failure}\n{', '.join(done)}", counts
    except Exception as error:
        return (
            f"{kind.name}: {type(error).__name__}: {str(error)[:500]}\n{', '.join(done)}\n{traceback.format_exc()[-3000:]}",
            counts,
        )
    return None, counts


def reproduce(case: str, keep: str | None = None) -> bool:
    """Run one case here, with all its words; whether it was right."""
    seed, index = map(int, case.split(":"))
    kind, data, done = draw(seed, index)
    print(f"{kind.name}, {len(data):,} bytes: {', '.join(done)}", flush=True)
    if keep:
        Path(keep).write_bytes(data)
    one(kind, kind.samples()[0])  # imports are no case's time
    words, counts = run_case(seed, index)
    print(words or f"right: {counts['ended'][0]}, {counts['measured'][1]:.2f} s, {counts['measured'][2] / 2**20:.0f} MiB")
    return words is None


assert os.name == "posix", "limits of memory are those of POSIX"
